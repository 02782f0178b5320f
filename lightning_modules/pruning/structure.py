"""The structure of a model as plain data: which positions of which tensors are kept together.

A *unit* is the smallest thing kept or removed. The *table* gives, for every axis of every parameter
and buffer that holds prunable units, the unit id at each position; -1 means fixed. A *group* is the
units that share the same axes with the same multiplicity, so that sizes and costs are functions of
the number of units kept per group. Ids are always those of the dense model: the structure of a
pruned model has the same groups with shorter rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

Keep = npt.NDArray[np.bool_]
"""One boolean per unit of the dense model, True = keep; shape (n_units,)."""
Counts = npt.NDArray[np.int64]
"""Units kept per group; shape (n_groups,)."""
Axis = tuple[str, int]
"""(name of a parameter or buffer, dimension)."""
Kind = Literal[
    "channel",
    "head",
    "head_dim",
    "conv_group",
    "neuron",
    "recurrent",
    "block",
    "weight",
    "weight_block",
    "pattern",
]
"""What a unit is.

`block` is a whole residual block. The last three are of single weights, see weights.py.
"""
AttentionUnit = Literal["head", "head_dim"]
"""What is removed from attention: a whole head, or one index of the width of each of its heads."""


@dataclass(frozen=True)
class Member:
    """One axis of a group. `out` produces the units (weight rows, bias, norm), `in` consumes
    them.
    """

    tensor: str
    dim: int
    role: Literal["out", "in"]


@dataclass(frozen=True)
class Group:
    """Units `start ... start + size - 1`, all with the same members.

    `mask_exact` says that zeroing a unit on both sides gives the same output as removing it. That
    holds if no reduction over the pruned axis (softmax, LayerNorm, mean) stands between producer
    and consumer. A group of kind `block` is one unit without members: the module whose path is the
    group's name, which `depth.PassThrough` replaces.
    """

    name: str
    start: int
    size: int
    members: tuple[Member, ...]
    mask_exact: bool
    kind: Kind = "channel"

    @property
    def units(self) -> slice:
        return slice(self.start, self.start + self.size)

    @property
    def least(self) -> int:
        """The least number of units that a plan keeps: 0 of a block or a pattern, else 1."""
        return 0 if self.kind in ("block", "pattern") else 1

    def among(self, row: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Which positions of an axis hold units of this group; `row` has the unit id of each."""
        return (row >= self.start) & (row < self.start + self.size)


@dataclass(frozen=True)
class Skipped:
    """A layer or group that stays whole, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Product:
    """`constant` times the product over factors of (fixed + units kept).

    It is the MACs of a node, or the elements of a tensor. Each factor is the unit id per position
    of one axis, -1 for a fixed position. `tensor` is the parameter whose elements a node multiplies
    with; it is "" where the node multiplies two activations. A node with several weights gives one
    product for each. So the MACs of a parameter's products, over its elements, are the MACs per
    weight.
    """

    name: str
    constant: int
    factors: tuple[npt.NDArray[np.int32], ...]
    tensor: str = ""


@dataclass(frozen=True)
class Structure:
    """What can be pruned in one model at one input shape.

    `table` holds int32 rows, only for axes with at least one prunable unit. `macs` are the conv,
    linear and matmul nodes of the traced graph at batch 1. `params` has one product per parameter;
    a shared one counts once. `whole` are the tensors that lose nothing although they could, by
    name, and why.
    """

    groups: tuple[Group, ...]
    table: Mapping[Axis, npt.NDArray[np.int32]]
    macs: tuple[Product, ...]
    params: tuple[Product, ...]
    skipped: tuple[Skipped, ...]
    layers: int
    prunable_layers: int
    source: Literal["export", "torch_pruning"] = "export"
    whole: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_units(self) -> int:
        return sum(group.size for group in self.groups)

    @property
    def sizes(self) -> Counts:
        return np.array([group.size for group in self.groups], dtype=np.int64)

    @property
    def least(self) -> Counts:
        """The least number of units that a plan keeps of each group; shape (n_groups,)."""
        return np.array([group.least for group in self.groups], dtype=np.int64)

    @property
    def attention(self) -> AttentionUnit:
        """What is removed from attention; the shapes of cut tensors do not tell `rebuild`."""
        for group in self.groups:
            if group.kind == "head_dim":
                return "head_dim"
        return "head"

    def counts(self, keep: Keep) -> Counts:
        """Units kept per group; shape (n_groups,)."""
        starts = np.array([group.start for group in self.groups], dtype=np.intp)
        return np.add.reduceat(keep.astype(np.int64), starts)

    def full(self) -> Keep:
        """Keep everything; shape (n_units,)."""
        return np.ones(self.n_units, dtype=np.bool_)

    def restrict(self, keep: Keep) -> Structure:
        """The structure of the model after removal: the same ids, rows without removed positions.

        Tensors of dropped blocks have no rows and are no members.
        """
        gone = dropped(self, keep)
        shorter: dict[int, npt.NDArray[np.int32]] = {}
        table = {}
        for axis, row in self.table.items():
            if id(row) not in shorter:  # axes that share a row go on sharing it
                shorter[id(row)] = row[(row < 0) | keep[row]]
            if not inside(axis[0], gone):
                table[axis] = shorter[id(row)]
        if not gone:
            return replace(self, table=table)
        groups = []
        for group in self.groups:
            left = tuple(member for member in group.members if not inside(member.tensor, gone))
            groups.append(replace(group, members=left))
        return replace(self, table=table, groups=tuple(groups))


def prefixed(structure: Structure, prefix: str) -> Structure:
    """The structure of a module in which the structure's own has names that begin with `prefix`."""
    groups = []
    for group in structure.groups:
        members = [replace(member, tensor=prefix + member.tensor) for member in group.members]
        groups.append(replace(group, name=prefix + group.name, members=tuple(members)))
    return replace(
        structure,
        groups=tuple(groups),
        table={(prefix + name, dim): row for (name, dim), row in structure.table.items()},
        macs=tuple([_renamed(product, prefix) for product in structure.macs]),
        params=tuple([_renamed(product, prefix) for product in structure.params]),
        skipped=tuple([replace(layer, name=prefix + layer.name) for layer in structure.skipped]),
    )


def _renamed(product: Product, prefix: str) -> Product:
    tensor = prefix + product.tensor if product.tensor else ""
    return replace(product, name=prefix + product.name, tensor=tensor)


def some_of(structure: Structure, kept: Counts) -> Keep:
    """Keep the first `kept[i]` units of every group.

    Which units these are makes no difference to costs, which depend on counts alone.
    """
    keep = np.zeros(structure.n_units, dtype=np.bool_)
    for group, count in zip(structure.groups, kept, strict=True):
        end = group.start + int(count)
        keep[group.start : end] = True
    return keep


def dropped(structure: Structure, keep: Keep) -> tuple[str, ...]:
    """Paths of the modules that `keep` replaces by the identity."""
    paths = []
    for group in structure.groups:
        if group.kind == "block" and not keep[group.start]:
            paths.append(group.name)
    return tuple(paths)


def inside(name: str, paths: Iterable[str]) -> bool:
    """Whether a module or tensor of this name is, or lies in, one of the modules at `paths`."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def isomorphic_classes(structure: Structure) -> list[list[int]]:
    """Classes of groups, by index, whose scores can be compared directly.

    They have the same kind and size, and their members agree one by one in dimension, role and the
    sizes of their tensor's prunable axes. Each group is in one class; classes and their members are
    in the order of the groups. `structure` is that of the dense model.
    Source: Fang et al. 2024, "Isomorphic Pruning", which ranks within such classes.
    """
    shapes: dict[str, list[tuple[int, int]]] = {}
    for tensor, dim in sorted(structure.table):
        length = len(structure.table[tensor, dim])
        shapes.setdefault(tensor, []).append((dim, length))
    classes: dict[tuple[object, ...], list[int]] = {}
    for index, group in enumerate(structure.groups):
        axes = []
        for member in group.members:
            shape = tuple(shapes.get(member.tensor, ()))
            axes.append((member.dim, member.role, shape))
        key = (group.kind, group.size, tuple(axes))
        classes.setdefault(key, []).append(index)
    return list(classes.values())
