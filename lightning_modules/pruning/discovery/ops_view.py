"""The rule for every reshape.

It says which axes an axis is cut into or merged with, and which of them carries the units.
"""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from lightning_modules.pruning.attention import head_count
from lightning_modules.pruning.discovery.labels import Dims, Ids, Label
from lightning_modules.pruning.discovery.trace import Trace, op_name, shape, tile
from lightning_modules.pruning.spellings import head_width, heads_alone
from lightning_modules.pruning.structure import AttentionUnit


def view(trace: Trace, node: Node) -> Dims:
    """Any reshape. Source and target sizes are cut into runs of equal product, each solved
    alone.
    """
    source = node.args[0]
    assert isinstance(source, Node)
    return reshape(trace, node, trace.dims(source), shape(source), shape(node))


def reshape(trace: Trace, node: Node, x: Dims, before: list[int], after: list[int]) -> Dims:
    """The labels of a tensor of sizes `before` and labels `x` that is reshaped to sizes `after`."""
    out: Dims = [""] * len(after)
    for sources, targets in _runs(before, after):
        free, reason = _free_axes(trace, x, sources)
        if len(sources) == len(targets) == 1:
            out[targets[0]] = x[sources[0]]
        elif len(free) == 1:
            sizes = [before[i] for i in sources]
            ids = _flat(x[free[0]], sizes, sources.index(free[0]))
            _split(trace, node, ids, [after[i] for i in targets], targets, out)
        else:
            if free:
                reason = f"two prunable axes are merged at {trace.where(node)}"
            for i in free:
                trace.freeze(x[i], reason)
            for i in targets:
                out[i] = reason
    return out


def _free_axes(trace: Trace, x: Dims, axes: list[int]) -> tuple[list[int], str]:
    """Those of the axes that are not frozen, and the first reason why another one is."""
    free = []
    first_reason = ""
    for axis in axes:
        label = x[axis]
        reason = label if isinstance(label, str) else trace.labels.frozen(label)
        if reason is None:
            free.append(axis)
        first_reason = first_reason or reason or ""
    return free, first_reason


Run = tuple[list[int], list[int]]
"""Dimensions before and after a reshape that have the same product of sizes."""


def _runs(before: list[int], after: list[int]) -> list[Run]:
    """The shortest runs of dimensions, without those of size 1."""
    left = _longer_than_one(before)
    right = _longer_than_one(after)
    runs: list[Run] = []
    i = j = 0
    while i < len(left) and j < len(right):
        sources = [left[i]]
        targets = [right[j]]
        source_size = before[left[i]]
        target_size = after[right[j]]
        i = i + 1
        j = j + 1
        while source_size != target_size:
            if source_size < target_size:
                sources.append(left[i])
                source_size *= before[left[i]]
                i += 1
            else:
                targets.append(right[j])
                target_size *= after[right[j]]
                j += 1
        runs.append((sources, targets))
    return runs


def _longer_than_one(sizes: list[int]) -> list[int]:
    return [dim for dim, size in enumerate(sizes) if size != 1]


def _flat(label: Label, sizes: list[int], index: int) -> Ids:
    """The ids along the flattened axes, of which axis `index` has the label."""
    assert not isinstance(label, str)
    in_front = sizes[:index]
    behind = sizes[index + 1 :]
    return tile(label, math.prod(in_front), math.prod(behind))


def _split(
    trace: Trace, node: Node, ids: Ids, sizes: list[int], targets: list[int], out: Dims
) -> None:
    """Lay a run of ids over several axes.

    One of the axes carries the units; positions along the others are tied.
    """
    if len(targets) == 1:
        out[targets[0]] = ids
        return
    grid = trace.labels.roots(ids).reshape(sizes)
    rows = []
    for axis, size in enumerate(sizes):
        by_position = np.moveaxis(grid, axis, 0).reshape(size, -1)
        rows.append(by_position)
        if (by_position == by_position[:, :1]).all():  # this axis carries the units already
            out[targets[axis]] = by_position[:, 0]
            return
    if _shares_input(trace, node, sizes, rows[-1]):
        out[targets[-1]] = rows[-1][:, 0]
        return
    axis, mark = _carrier(trace, node, sizes)
    trace.labels.tie(rows[axis])
    if mark is not None:
        trace.labels.mark(rows[axis], mark)
    out[targets[axis]] = rows[axis][:, 0]


def _shares_input(trace: Trace, node: Node, sizes: list[int], widths: Ids) -> bool:
    """Whether the axis is cut into heads that share out the width of the layer's input.

    The first vision transformers compute a head's width so. Then every head and the input lose
    width together: index i of each head is one unit with index i of each head's share of the input.
    """
    heads = heads_alone(trace.owner(node)[1])
    linear = node.args[0]
    if heads is None or sizes[-2] != heads or not isinstance(linear, Node):
        return False
    if op_name(linear) != "linear" or not isinstance(linear.args[0], Node):
        return False
    source = linear.args[0]
    label = trace.dims(source)[-1]
    if isinstance(label, str) or label.size != heads * sizes[-1]:
        return False
    shares = label.reshape(heads, sizes[-1]).T
    trace.labels.tie(np.concatenate([widths, shares], axis=1))
    return True


def _carrier(trace: Trace, node: Node, sizes: list[int]) -> tuple[int, AttentionUnit | None]:
    """The axis that shrinks when units are removed, and the mark of its units.

    In an attention module it is the heads or their width, or the heads where only these can go;
    elsewhere it is the longest axis, of
    equally long ones the last. Verification catches a wrong choice and freezes the group.
    """
    _, owner = trace.owner(node)
    heads = head_count(owner)
    last = len(sizes) - 1
    if heads is not None:
        count, widths = heads
        for axis in reversed(range(last)):
            width = math.prod(sizes[axis + 1 :])
            if sizes[axis] % count == 0 and width in widths:
                return (axis, "head") if trace.attention == "head" else (last, "head_dim")
    known_width = head_width(owner)
    if known_width is not None and last > 0 and sizes[last] in (known_width, 3 * known_width):
        return last - 1, "head"
    return max(range(len(sizes)), key=lambda i: (sizes[i], i)), None
