"""The rule for every reshape: which axes an axis is cut into or merged with, and which of them carries the units."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from lightning_modules.pruning.attention import head_count
from lightning_modules.pruning.discovery.labels import Dims, Ids, Label
from lightning_modules.pruning.discovery.trace import Trace, shape, tile
from lightning_modules.pruning.structure import AttentionUnit


def view(trace: Trace, node: Node) -> Dims:
    """Any reshape: source and target sizes are cut into runs of equal product, each solved alone."""
    source = node.args[0]
    assert isinstance(source, Node)
    return reshape(trace, node, trace.dims(source), shape(source), shape(node))


def reshape(trace: Trace, node: Node, x: Dims, before: list[int], after: list[int]) -> Dims:
    out: Dims = [""] * len(after)
    for sources, targets in _runs(before, after):
        free = []
        reason = ""
        for i in sources:
            label = x[i]
            why = label if isinstance(label, str) else trace.labels.frozen(label)
            reason = reason or why or ""
            if why is None:
                free.append(i)
        if len(sources) == len(targets) == 1:
            out[targets[0]] = x[sources[0]]
        elif len(free) == 1:
            ids = _flat(x[free[0]], [before[i] for i in sources], sources.index(free[0]))
            _split(trace, node, ids, [after[i] for i in targets], targets, out)
        else:
            reason = f"two prunable axes are merged at {trace.where(node)}" if free else reason
            for i in free:
                trace.freeze(x[i], reason)
            for i in targets:
                out[i] = reason
    return out


def _runs(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of dimensions (size 1 left out) with equal products on both sides."""
    left = [i for i, size in enumerate(before) if size != 1]
    right = [i for i, size in enumerate(after) if size != 1]
    runs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        a, b = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while (p := math.prod(before[k] for k in a)) != (q := math.prod(after[k] for k in b)):
            if p < q:
                a.append(left[i])
                i += 1
            else:
                b.append(right[j])
                j += 1
        runs.append((a, b))
    return runs


def _flat(label: Label, sizes: list[int], index: int) -> Ids:
    assert not isinstance(label, str)
    return tile(label, math.prod(sizes[:index]), math.prod(sizes[index + 1 :]))


def _split(
    trace: Trace, node: Node, ids: Ids, sizes: list[int], targets: list[int], out: Dims
) -> None:
    """Lay a run of ids over several axes: one of them carries the units, positions along the others are tied."""
    if len(targets) == 1:
        out[targets[0]] = ids
        return
    grid = trace.labels.roots(ids).reshape(sizes)
    rows = [np.moveaxis(grid, axis, 0).reshape(size, -1) for axis, size in enumerate(sizes)]
    constant = [axis for axis, row in enumerate(rows) if (row == row[:, :1]).all()]
    if constant:
        out[targets[constant[0]]] = rows[constant[0]][:, 0]
        return
    axis, mark = _carrier(trace, node, sizes)
    trace.labels.union(rows[axis][:, :1], rows[axis][:, 1:])
    if mark is not None:
        trace.labels.mark(rows[axis], mark)
    out[targets[axis]] = rows[axis][:, 0]


def _carrier(trace: Trace, node: Node, sizes: list[int]) -> tuple[int, AttentionUnit | None]:
    """The axis that shrinks when units go: heads or their width in an attention module, else the longest (last) one.

    Verification catches a wrong choice: the group is then frozen.
    """
    _, owner = trace.owner(node)
    heads = head_count(owner)
    if heads is not None:
        count, widths = heads
        for axis in reversed(range(len(sizes) - 1)):
            if sizes[axis] % count == 0 and math.prod(sizes[axis + 1 :]) in widths:
                return (axis, "head") if trace.attention == "head" else (len(sizes) - 1, "head_dim")
    return max(range(len(sizes)), key=lambda i: (sizes[i], i)), None
