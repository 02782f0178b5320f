"""What the op rules read and write.

These are the labels of every value, the axes of every parameter and the products of every node.
"""

from __future__ import annotations

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
    """A node's MACs before units are numbered: `constant` times the lengths of the factors.

    `path` is the module that calls the node; see `Product` for the rest.
    """

    name: str
    constant: int
    factors: tuple[Ids, ...]
    tensor: str = ""
    path: str = ""


@dataclass(frozen=True)
class TraceStep:
    """One op of the dense model's graph: the sizes and labels of what it returns."""

    op: str
    where: str
    sizes: tuple[int, ...]
    labels: Dims


@dataclass
class Trace:
    """The state of one walk.

    `tensors` maps placeholders to names of parameters and buffers. `origins` adds the pieces that
    the program cuts from them, such as query, key and value of one packed weight, and what it
    computes from them alone, such as a weight times a mask. `static` are all values that no input
    of the model enters; `kernels` are the placeholders behind weights of convolutions. `names` maps
    every name to the first name of the same tensor. `trained` says that a walk in train mode was
    needed too. `steps` are the ops of eval mode, if there
    is a graph. `blocks` are modules that can be removed as a whole. `path` is the module whose op
    is being labelled.
    """

    model: nn.Module
    labels: Labels = field(default_factory=Labels)
    tensors: dict[Node, str] = field(default_factory=dict)
    origins: dict[Node, str] = field(default_factory=dict)
    static: set[Node] = field(default_factory=set)
    kernels: set[Node] = field(default_factory=set)
    values: dict[Node, Dims | list[Dims]] = field(default_factory=dict)
    axes: dict[Axis, Ids] = field(default_factory=dict)
    consumers: set[Axis] = field(default_factory=set)
    producers: dict[Axis, Kind] = field(default_factory=dict)
    weights: dict[str, None] = field(default_factory=dict)
    products: list[RawProduct] = field(default_factory=list)
    steps: list[TraceStep] = field(default_factory=list)
    notes: dict[Skipped, None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    transient: frozenset[str] = frozenset()
    trained: bool = False
    attention: AttentionUnit = "head"
    blocks: dict[str, None] = field(default_factory=dict)
    path: str = ""
    source: Literal["export", "torch_pruning"] = "export"

    @cached_property
    def parameters(self) -> frozenset[str]:
        """The names of the model's parameters."""
        return frozenset(dict(self.model.named_parameters()))

    def axis(self, tensor: str, dim: int, size: int) -> Ids:
        """The ids of one axis of a parameter or buffer; shape (size,).

        They are created when first asked for.
        """
        key = (tensor, dim)
        if key not in self.axes:
            ids = self.labels.new(size)
            self.axes[key] = ids
            if tensor in self.transient:
                self.labels.freeze(ids, f"{tensor} is a buffer that is not saved with the model")
        return self.axes[key]

    def dims(self, node: Node) -> Dims:
        """The label of each dimension of a tensor value; a dimension of size 1 is fixed."""
        if node in self.tensors:
            return self._parameter_dims(node)
        value = self.values.get(node)
        if value is None or (value and isinstance(value[0], list)):
            return [""] * len(shape(node))
        return list(value)  # type: ignore[arg-type]

    def _parameter_dims(self, node: Node) -> Dims:
        name = self.tensors[node]
        dims: Dims = []
        for dim, size in enumerate(shape(node)):
            in_kernel = node in self.kernels and dim > 1
            dims.append(self.axis(name, dim, size) if size > 1 and not in_kernel else "")
        return dims

    def join(self, left: Label, right: Label, where: str) -> Label:
        """The label of an axis on which two labels meet; a fixed one freezes the other."""
        if isinstance(left, str) and isinstance(right, str):
            return left or right
        if isinstance(left, str):
            left, right = right, left
        assert not isinstance(left, str)
        if isinstance(right, str):
            self.labels.freeze(left, right or f"meets an axis of fixed size at {where}")
        else:
            self.labels.union(left, right)
        return left

    def freeze(self, label: Label, reason: str) -> None:
        """Fix the units on an axis."""
        if not isinstance(label, str):
            self.labels.freeze(label, reason)

    def inexact(self, label: Label) -> None:
        """Mark an axis as reduced over: zeroing one of its units is not the same as removing it."""
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
        """Record a node's MACs: `constant` times the sizes, of which the labelled ones may
        shrink.
        """
        factors: list[Ids] = []
        for size, label in zip(sizes, labels, strict=True):
            if isinstance(label, str):
                constant *= size
            else:
                factors.append(label)
        self.products.append(RawProduct(name, constant, tuple(factors), tensor, self.path))

    def parameter(self, *nodes: Node) -> str:
        """The parameter whose elements one of `nodes` holds, perhaps laid out anew.

        Of several it is that of the last node; it is "" if there is none.
        """
        for node in reversed(nodes):
            while node not in self.origins and op_name(node) in LAYOUTS and node.all_input_nodes:
                node = node.all_input_nodes[0]
            origin = self.origins.get(node)
            if origin in self.parameters:
                return origin
        return ""

    def owner(self, node: Node) -> tuple[str, nn.Module]:
        """The path and module whose forward called this op; of a shared module the first path."""
        stack = node.meta.get("nn_module_stack") or {}
        path = ""
        if stack:
            innermost = list(stack.values())[-1]
            path = re.sub(r"@\d+", "", innermost[0])
        try:
            return path, self.model.get_submodule(path)
        except AttributeError:
            return path, self.model

    def layer(self, node: Node) -> str:
        """The path of the module that called this op, or else the name of the node."""
        path, _ = self.owner(node)
        return path or node.name

    def where(self, node: Node) -> str:
        """The op and its module, for a reason."""
        path, _ = self.owner(node)
        return f"{op_name(node)} in {path}" if path else op_name(node)


def shape(node: Any) -> list[int]:
    """The sizes of a traced value; [] for what is no tensor."""
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
    """Every argument of an ATen call by its name in the schema, with defaults filled in."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    bound: dict[str, Any] = {}
    for i, argument in enumerate(target._schema.arguments):
        name = argument.name
        if i < len(node.args) and not argument.kwarg_only:
            bound[name] = node.args[i]
        else:
            bound[name] = node.kwargs.get(name, argument.default_value)
    return bound


def tile(ids: Ids, before: int, after: int) -> Ids:
    """Ids along an axis that is flattened with `before` positions in front and `after` behind
    it.
    """
    return np.tile(np.repeat(ids, after), before)


_LAYOUTS = (
    "t numpy_T transpose permute swapaxes movedim view reshape unflatten flatten squeeze unsqueeze "
    "expand contiguous clone alias to _to_copy"
)
LAYOUTS = frozenset(_LAYOUTS.split())
"""Ops that hold the elements of their input and no others."""
OpRule = Callable[[Trace, Node], Dims | list[Dims] | None]
"""Labels what one op returns: the dimensions of one tensor, or of several.

It returns None if it has no rule for this use of the op.
"""
