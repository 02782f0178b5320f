"""Whether a smaller model means the same where zeroed and removed units differ.

There a reduction over the units stands between producer and consumer, such as a LayerNorm. That
the smaller model runs is no proof: a forward pass that cuts an axis by an old width runs too, and
joins what never belonged together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.fx import Graph, Node

from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.discovery.labels import Label
from lightning_modules.pruning.discovery.trace import Trace, TraceStep, op_name, shape
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure

Places = npt.NDArray[np.intp]
"""Positions on an axis."""


def alike(
    model: nn.Module, structure: Structure, groups: Sequence[int]
) -> tuple[nn.Module, nn.Module]:
    """A model whose units come in sets of equal ones, and a smaller one with one unit of each set.

    Both compute the same if what stands between producers and consumers depends on the units'
    distribution alone, as means, variances and norms over the mean do. Consumers in the smaller
    model weigh a unit as often as the set had it.
    """
    first = np.arange(structure.n_units)
    times = np.ones(structure.n_units, dtype=np.int64)
    for index in groups:
        group = structure.groups[index]
        each = _smallest_divisor(group.size)
        members = np.arange(group.start, group.start + group.size)
        first[members] = group.start + (members - group.start) // each * each
        times[members] = each
    equal = copy_of(model)
    named = {**dict(equal.named_parameters()), **dict(equal.named_buffers())}
    keep = first == np.arange(structure.n_units)
    with torch.no_grad():
        for (name, dim), row in structure.table.items():
            tensor = named[name]
            source = torch.from_numpy(_sources(row, first)).to(tensor.device)
            tensor.copy_(tensor.index_select(dim, source))
        small = remove(equal, structure, keep)
        _weigh(small, structure, groups, times, keep)
    return equal, small


def _smallest_divisor(size: int) -> int:
    """The smallest divisor above 1."""
    for divisor in range(2, math.isqrt(size) + 1):
        if size % divisor == 0:
            return divisor
    return size


def _sources(row: npt.NDArray[np.int32], first: npt.NDArray[np.intp]) -> Places:
    """For each position of an axis the one whose slice it takes: that of its set's first unit.

    A unit with several positions takes them in their order.
    """
    sources = np.arange(len(row))
    places: dict[int, Places] = {}
    for unit in np.unique(row[row >= 0]).tolist():
        places[unit] = np.flatnonzero(row == unit)
    for unit, own in places.items():
        sources[own] = places[int(first[unit])]
    return sources


def _weigh(
    small: nn.Module,
    structure: Structure,
    groups: Sequence[int],
    times: npt.NDArray[np.int64],
    keep: Keep,
) -> None:
    """Multiply, in place, what consumes a unit by the number of units that it stands for."""
    left = structure.restrict(keep)
    named = dict(small.named_parameters())
    for index in groups:
        for member in structure.groups[index].members:
            if member.role != "in":
                continue
            row = left.table[member.tensor, member.dim]
            own = structure.groups[index].among(row)
            weights = np.where(own, times[row], 1)
            tensor = named[member.tensor]
            sizes = [1] * tensor.dim()
            sizes[member.dim] = len(row)
            tensor.mul_(torch.from_numpy(weights).to(tensor.device, tensor.dtype).reshape(sizes))


def steps(trace: Trace, graph: Graph) -> list[TraceStep]:
    """The ops of a graph that has been walked."""
    found = []
    for node in _ops(graph):
        sizes = tuple(shape(node))
        found.append(TraceStep(op_name(node), trace.where(node), sizes, trace.dims(node)))
    return found


def _ops(graph: Graph) -> list[Node]:
    """The ops that return one tensor."""
    return [
        node
        for node in graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)
    ]


def altered(trace: Trace, structure: Structure, keep: Keep, graph: Graph) -> str | None:
    """What the smaller model's graph does otherwise than the dense one's; None if nothing.

    It must be the same ops in the same order, with axes that differ by the removed units alone.
    """
    units: dict[int, int] = {}
    for axis, row in structure.table.items():
        units |= dict(zip(trace.labels.roots(trace.axes[axis]).tolist(), row.tolist(), strict=True))
    nodes = _ops(graph)
    if [op_name(node) for node in nodes] != [step.op for step in trace.steps]:
        return "the smaller model takes other steps than the dense one"
    for step, node in zip(trace.steps, nodes, strict=True):
        expected = []
        for size, label in zip(step.sizes, step.labels, strict=True):
            expected.append(_left(trace, label, size, units, keep))
        if expected != shape(node):
            return f"{step.where} makes a tensor of {shape(node)}, where {expected} would be right"
    return None


def _left(trace: Trace, label: Label, size: int, units: Mapping[int, int], keep: Keep) -> int:
    """The size of an axis when units are removed."""
    if isinstance(label, str):
        return size
    row = np.array([units.get(root, -1) for root in trace.labels.roots(label).tolist()])
    return int(((row < 0) | keep[row]).sum())
