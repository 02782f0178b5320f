"""What the op rules read and write: labels of every value, axes of every parameter, products of every node."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from lightning_modules.pruning.discovery.labels import Dims, Ids, Label, Labels
from lightning_modules.pruning.structure import AttentionUnit, Axis, Kind, Skipped


@dataclass(frozen=True)
class RawProduct:
    """A node's MACs before units are numbered: `constant` times the lengths of the factors; see `Product`.

    `path` is the module that calls it.
    """

    name: str
    constant: int
    factors: tuple[Ids, ...]
    tensor: str = ""
    path: str = ""


@dataclass
class Trace:
    """The state of one walk; `tensors` maps placeholders to names of parameters and buffers.

    `origins` adds the pieces that the program cuts from them (query, key and value of one packed weight), `names`
    maps every name to the first of the same tensor, `trained` says that a walk in train mode was needed too. `blocks`
    are modules that can go as a whole, `path` is the module whose op is being labelled.
    """

    model: nn.Module
    labels: Labels = field(default_factory=Labels)
    tensors: dict[Node, str] = field(default_factory=dict)
    origins: dict[Node, str] = field(default_factory=dict)
    values: dict[Node, Dims | list[Dims]] = field(default_factory=dict)
    axes: dict[Axis, Ids] = field(default_factory=dict)
    consumers: set[Axis] = field(default_factory=set)
    producers: dict[Axis, Kind] = field(default_factory=dict)
    weights: dict[str, None] = field(default_factory=dict)
    products: list[RawProduct] = field(default_factory=list)
    notes: dict[Skipped, None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    transient: frozenset[str] = frozenset()
    trained: bool = False
    attention: AttentionUnit = "head"
    blocks: dict[str, None] = field(default_factory=dict)
    path: str = ""
    source: Literal["export", "torch_pruning"] = "export"

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.model.named_parameters())

    def axis(self, tensor: str, dim: int, size: int) -> Ids:
        """The ids of one axis of a parameter or buffer, created when first asked for; shape (size,)."""
        key = (tensor, dim)
        if key not in self.axes:
            self.axes[key] = self.labels.new(size)
            if tensor in self.transient:
                self.labels.freeze(
                    self.axes[key], f"{tensor} is a buffer that is not saved with the model"
                )
        return self.axes[key]

    def dims(self, node: Node) -> Dims:
        """The label of each dimension of a tensor value; a dimension of size 1 is fixed."""
        if node in self.tensors:
            name = self.tensors[node]
            return [self.axis(name, d, s) if s > 1 else "" for d, s in enumerate(shape(node))]
        value = self.values.get(node)
        if value is None or (value and isinstance(value[0], list)):
            return [""] * len(shape(node))
        return list(value)  # type: ignore[arg-type]

    def join(self, left: Label, right: Label, where: str) -> Label:
        """The label of an axis on which two labels meet; a fixed one freezes the other."""
        if isinstance(left, str) and isinstance(right, str):
            return left or right
        if isinstance(left, str) or isinstance(right, str):
            ids, reason = (right, left) if isinstance(left, str) else (left, right)
            assert not isinstance(ids, str)
            assert isinstance(reason, str)
            self.labels.freeze(ids, reason or f"meets an axis of fixed size at {where}")
            return ids
        self.labels.union(left, right)
        return left

    def freeze(self, label: Label, reason: str) -> None:
        if not isinstance(label, str):
            self.labels.freeze(label, reason)

    def inexact(self, label: Label) -> None:
        """Values are reduced over this axis: zeroing a unit is not the same as removing it."""
        if not isinstance(label, str):
            self.labels.mark(label, "inexact")

    def multiply(
        self,
        name: str,
        sizes: Sequence[int],
        labels: Sequence[Label],
        constant: int = 1,
        tensor: str = "",
    ) -> None:
        """Record a node's MACs: `constant` times the sizes, of which the labelled ones may shrink."""
        factors = [label for label in labels if not isinstance(label, str)]
        fixed = math.prod(
            size for size, label in zip(sizes, labels, strict=True) if isinstance(label, str)
        )
        self.products.append(RawProduct(name, constant * fixed, tuple(factors), tensor, self.path))

    def parameter(self, *nodes: Node) -> str:
        """The parameter whose elements the last such one of `nodes` holds, perhaps laid out anew; "" if none does."""
        for node in reversed(nodes):
            while node not in self.origins and op_name(node) in LAYOUTS and node.all_input_nodes:
                node = node.all_input_nodes[0]
            if self.origins.get(node) in self._parameters:
                return self.origins[node]
        return ""

    def owner(self, node: Node) -> tuple[str, nn.Module]:
        """Path and module whose forward called this op (of a shared module, the first path)."""
        stack = node.meta.get("nn_module_stack") or {}
        path = re.sub(r"@\d+", "", list(stack.values())[-1][0]) if stack else ""
        try:
            return path, self.model.get_submodule(path)
        except AttributeError:
            return path, self.model

    def where(self, node: Node) -> str:
        path, _ = self.owner(node)
        return f"{op_name(node)} in {path}" if path else op_name(node)


def shape(node: Any) -> list[int]:
    """Sizes of a traced value, [] for what is no tensor."""
    value = node.meta.get("val")
    return list(value.shape) if isinstance(value, torch.Tensor) else []


def op_name(node: Node) -> str:
    """`conv2d` for `aten.conv2d.default`, `getitem` for the Python builtin."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, name = target._schema.name.split("::")
        return name if namespace == "aten" else f"{namespace}.{name}"
    return getattr(target, "__name__", str(target))


def bind(node: Node) -> dict[str, Any]:
    """Every argument of an ATen call by its name in the schema, defaults filled in."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    bound: dict[str, Any] = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def tile(ids: Ids, before: int, after: int) -> Ids:
    """Ids along an axis that is flattened with `before` positions in front and `after` behind it."""
    return np.tile(np.repeat(ids, after), before)


_LAYOUTS = (
    "t numpy_T transpose permute swapaxes movedim view reshape unflatten flatten squeeze unsqueeze expand contiguous "
    "clone alias to _to_copy"
)
LAYOUTS = frozenset(_LAYOUTS.split())
"""Ops that hold the elements of their input and no others."""
Rule = Callable[[Trace, Node], Dims | list[Dims] | None]
"""Labels of what one op gives: one tensor's dimensions, or those of several tensors; None = no rule for this use."""
