"""Rules for ops that move, join, cut and pick axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from lightning_modules.pruning.attention import head_count
from lightning_modules.pruning.discovery.labels import Dims
from lightning_modules.pruning.discovery.ops_view import view
from lightning_modules.pruning.discovery.trace import Rule, Trace, bind, shape


def permute(trace: Trace, node: Node) -> Dims:
    a = bind(node)
    x = trace.dims(a["self"])
    if "dims" in a:
        return [x[d] for d in a["dims"]]
    if "dim0" in a:
        x[a["dim0"]], x[a["dim1"]] = x[a["dim1"]], x[a["dim0"]]
        return x
    return x[::-1]


def movedim(trace: Trace, node: Node) -> Dims:
    a = bind(node)
    x = trace.dims(a["self"])
    sources, targets = ([v] if isinstance(v, int) else v for v in (a["source"], a["destination"]))
    moved = {t % len(x): s % len(x) for s, t in zip(sources, targets, strict=True)}
    rest = iter([d for d in range(len(x)) if d not in moved.values()])
    return [x[moved[d]] if d in moved else x[next(rest)] for d in range(len(x))]


def expand(trace: Trace, node: Node) -> Dims:
    source = node.args[0]
    assert isinstance(source, Node)
    x, before, after = trace.dims(source), shape(source), shape(node)
    lead = len(after) - len(before)
    return [
        "" if d < lead or before[d - lead] != after[d] else x[d - lead] for d in range(len(after))
    ]


def expand_as(trace: Trace, node: Node) -> Dims:
    """Axes of size 1 take the sizes, and therefore the units, of the other tensor."""
    source, other = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(other, Node)
    x, like = trace.dims(source), trace.dims(other)
    lead = len(like) - len(x)
    wide = [d < lead or shape(source)[d - lead] == 1 for d in range(len(like))]
    return [like[d] if wide[d] else x[d - lead] for d in range(len(like))]


def repeat(trace: Trace, node: Node) -> Dims:
    """Copies along an axis repeat its ids."""
    a = bind(node)
    x, times = trace.dims(a["self"]), a["repeats"]
    padded: Dims = [*[""] * (len(times) - len(x)), *x]
    return [v if isinstance(v, str) else np.tile(v, t) for v, t in zip(padded, times, strict=True)]


def cat(trace: Trace, node: Node) -> Dims:
    """Ids follow each other along the axis; a fixed part gets ids of its own, frozen."""
    a, where = bind(node), trace.where(node)
    parts = [part for part in a["tensors"] if shape(part) != [0]]
    dim = a["dim"] % len(shape(node))
    out = trace.dims(parts[0])
    for part in parts[1:]:
        for d, label in enumerate(trace.dims(part)):
            if d != dim:
                out[d] = trace.join(out[d], label, where)
    pieces = [(trace.dims(part)[dim], shape(part)[dim]) for part in parts]
    if all(isinstance(label, str) for label, _ in pieces):
        out[dim] = next((str(label) for label, _ in pieces if label != ""), "")
        return out
    ids = []
    for label, size in pieces:
        if isinstance(label, str):
            fixed = trace.labels.new(size)
            trace.labels.freeze(fixed, label or f"concatenated axis of fixed size at {where}")
            label = fixed
        ids.append(label)
    out[dim] = np.concatenate(ids)
    return out


def stack(trace: Trace, node: Node) -> Dims:
    a, where = bind(node), trace.where(node)
    out = trace.dims(a["tensors"][0])
    for part in a["tensors"][1:]:
        out = [trace.join(p, q, where) for p, q in zip(out, trace.dims(part), strict=True)]
    out.insert(a["dim"] % (len(out) + 1), "")
    return out


def split(trace: Trace, node: Node) -> list[Dims]:
    """Equal parts tie position i of each part; unequal sizes are written in the program, so all is frozen.

    Attention reads the sizes of queries, keys and values off its heads, and ties them itself.
    """
    a, where = bind(node), trace.where(node)
    x, values = trace.dims(a["self"]), node.meta["val"]
    dim = a["dim"] % len(x)
    label, sizes = x[dim], [value.shape[dim] for value in values]
    _, owner = trace.owner(node)
    if isinstance(label, str):
        return [list(x) for _ in values]
    if len(sizes) == 1 or (isinstance(owner, nn.MultiheadAttention) and head_count(owner)):
        pass
    elif len(set(sizes)) == 1:
        rows = label.reshape(len(sizes), -1).T
        trace.labels.union(rows[:, :1], rows[:, 1:])
    else:
        trace.freeze(label, f"split into parts of sizes {sizes} at {where}")
    out, start = [], 0
    for size in sizes:
        part = list(x)
        part[dim] = label[start : start + size] if size > 1 else ""
        start += size
        out.append(part)
    return out


def unbind(trace: Trace, node: Node) -> list[Dims]:
    a = bind(node)
    x = trace.dims(a["self"])
    dim = a["dim"] % len(x)
    trace.freeze(x[dim], f"taken apart at {trace.where(node)}")
    return [[label for d, label in enumerate(x) if d != dim] for _ in node.meta["val"]]


def select(trace: Trace, node: Node) -> Dims:
    a = bind(node)
    x = trace.dims(a["self"])
    trace.freeze(x.pop(a["dim"] % len(x)), f"one position is picked at {trace.where(node)}")
    return x


def cut(trace: Trace, node: Node) -> Dims:
    """Slice and narrow: bounds are written in the program, so a shortened axis is frozen."""
    a = bind(node)
    x, dim = trace.dims(a["self"]), a["dim"] % len(shape(a["self"]))
    if shape(node)[dim] != shape(a["self"])[dim]:
        trace.freeze(x[dim], f"sliced at {trace.where(node)}")
        x[dim] = f"sliced at {trace.where(node)}"
    return x


def pick(trace: Trace, node: Node) -> Dims:
    """Indexing by a tensor: indexed axes are frozen, a single indexed axis gives way to those of the index."""
    a, where = bind(node), trace.where(node)
    x = trace.dims(a["self"])
    if "dim" in a:
        trace.freeze(x[a["dim"]], f"indexed at {where}")
        x[a["dim"]] = ""
        return x
    indexed = [d for d, index in enumerate(a["indices"]) if index is not None]
    for d in indexed:
        trace.freeze(x[d], f"indexed at {where}")
    if len(indexed) != 1:
        for label in x:
            trace.freeze(label, f"indexed along several axes at {where}")
        return [f"indexed along several axes at {where}"] * len(shape(node))
    (d,) = indexed
    return [*x[:d], *[""] * len(shape(a["indices"][d])), *x[d + 1 :]]


def pad(trace: Trace, node: Node) -> Dims:
    a = bind(node)
    source: Any = a.get("self")
    x = trace.dims(source)
    for d in range(len(x)):
        if shape(node)[d] != shape(source)[d]:
            trace.freeze(x[d], f"padded at {trace.where(node)}")
            x[d] = f"padded at {trace.where(node)}"
    return x


def pixel_shuffle(trace: Trace, node: Node) -> Dims:
    """r x r consecutive channels become one: they are one unit."""
    a = bind(node)
    x, factor = trace.dims(a["self"]), a["upscale_factor"]
    if not isinstance(x[1], str):
        rows = x[1].reshape(-1, factor * factor)
        trace.labels.union(rows[:, :1], rows[:, 1:])
        x[1] = rows[:, 0] if len(rows) > 1 else ""
    return [*x[:2], "", ""]


def pixel_unshuffle(trace: Trace, node: Node) -> Dims:
    a = bind(node)
    x, factor = trace.dims(a["self"]), a["downscale_factor"]
    return [x[0], x[1] if isinstance(x[1], str) else np.repeat(x[1], factor * factor), "", ""]


def channel_shuffle(trace: Trace, node: Node) -> Dims:
    """Position (i, j) of (groups, channels per group) moves to (j, i); the groups are tied."""
    a = bind(node)
    x = trace.dims(a["self"])
    if not isinstance(x[1], str):
        rows = x[1].reshape(a["groups"], -1).T
        trace.labels.union(rows[:, :1], rows[:, 1:])
        x[1] = rows.ravel()
    return x


_VIEW = (
    "view reshape flatten unflatten squeeze unsqueeze _unsafe_view _reshape_alias ravel squeeze_ unsqueeze_ view_as "
    "reshape_as"
)
_PERMUTE = "permute transpose t numpy_T transpose_ t_ swapaxes swapdims"
RULES: dict[str, Rule] = {
    **dict.fromkeys(_VIEW.split(), view),
    **dict.fromkeys(_PERMUTE.split(), permute),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), split),
    **dict.fromkeys(("slice", "narrow"), cut),
    **dict.fromkeys(("index", "index_select"), pick),
    **dict.fromkeys(("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"), pad),
    "expand": expand,
    "expand_as": expand_as,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "movedim": movedim,
    "repeat": repeat,
    "stack": stack,
    "unbind": unbind,
    "select": select,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
}
