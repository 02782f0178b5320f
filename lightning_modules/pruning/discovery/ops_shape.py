"""Rules for ops that move, join, cut and pick axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from lightning_modules.pruning.attention import head_count
from lightning_modules.pruning.discovery.labels import Dims, Ids, Label
from lightning_modules.pruning.discovery.ops_view import view
from lightning_modules.pruning.discovery.trace import OpRule, Trace, bind, shape


def permute(trace: Trace, node: Node) -> Dims:
    """Permute and transpose; without arguments the axes are reversed."""
    a = bind(node)
    x = trace.dims(a["self"])
    if "dims" in a:
        return [x[dim] for dim in a["dims"]]
    for first, second in (("dim0", "dim1"), ("axis0", "axis1")):
        if first in a:
            x[a[first]], x[a[second]] = x[a[second]], x[a[first]]
            return x
    return x[::-1]


def movedim(trace: Trace, node: Node) -> Dims:
    """The named axes move to their targets; the others keep their order."""
    a = bind(node)
    x = trace.dims(a["self"])
    source_of: dict[int, int] = {}
    for source, target in zip(_as_list(a["source"]), _as_list(a["destination"]), strict=True):
        source_of[target % len(x)] = source % len(x)
    rest = iter([dim for dim in range(len(x)) if dim not in source_of.values()])
    out = []
    for dim in range(len(x)):
        source = source_of[dim] if dim in source_of else next(rest)
        out.append(x[source])
    return out


def _as_list(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else dims


def expand(trace: Trace, node: Node) -> Dims:
    """Axes of size 1 take the sizes written in the program."""
    source = node.args[0]
    assert isinstance(source, Node)
    x = trace.dims(source)
    before = shape(source)
    after = shape(node)
    lead = len(after) - len(before)
    out: Dims = [""] * lead
    for label, size, new_size in zip(x, before, after[lead:], strict=True):
        out.append(label if size == new_size else "")
    return out


def expand_as(trace: Trace, node: Node) -> Dims:
    """Axes of size 1 take the sizes, and therefore the units, of the other tensor."""
    source, other = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(other, Node)
    x = trace.dims(source)
    like = trace.dims(other)
    lead = len(like) - len(x)
    out = like[:lead]
    for label, size, like_label in zip(x, shape(source), like[lead:], strict=True):
        out.append(like_label if size == 1 else label)
    return out


def repeat(trace: Trace, node: Node) -> Dims:
    """Copies along an axis repeat its ids."""
    a = bind(node)
    x = trace.dims(a["self"])
    repeats = a["repeats"]
    lead = len(repeats) - len(x)
    out: Dims = [""] * lead
    for label, times in zip(x, repeats[lead:], strict=True):
        out.append(label if isinstance(label, str) else np.tile(label, times))
    return out


def repeat_interleave(trace: Trace, node: Node) -> Dims | None:
    """Copies of each position follow it; a number of copies per position has no rule."""
    a = bind(node)
    if not isinstance(a.get("repeats"), int) or a.get("dim") is None:
        return None
    x = trace.dims(a["self"])
    label = x[a["dim"]]
    if not isinstance(label, str):
        x[a["dim"]] = np.repeat(label, a["repeats"])
    return x


def cat(trace: Trace, node: Node) -> Dims:
    """Ids follow one another along the axis; a fixed part gets new ids, which are frozen."""
    a = bind(node)
    where = trace.where(node)
    parts = [part for part in a["tensors"] if shape(part) != [0]]
    dim = a["dim"] % len(shape(node))
    out = trace.dims(parts[0])
    for part in parts[1:]:
        for other_dim, label in enumerate(trace.dims(part)):
            if other_dim != dim:
                out[other_dim] = trace.join(out[other_dim], label, where)
    pieces = [(trace.dims(part)[dim], shape(part)[dim]) for part in parts]
    out[dim] = _concatenated(trace, pieces, where)
    return out


def _concatenated(trace: Trace, pieces: list[tuple[Label, int]], where: str) -> Label:
    """The label of an axis made of (label, size) pieces."""
    reasons = []
    for label, _ in pieces:
        if isinstance(label, str):
            reasons.append(label)
    if len(reasons) == len(pieces):  # the whole axis is fixed
        return next(filter(None, reasons), "")
    ids: list[Ids] = []
    for label, size in pieces:
        if isinstance(label, str):
            fixed = trace.labels.new(size)
            trace.labels.freeze(fixed, label or f"concatenated axis of fixed size at {where}")
            label = fixed
        ids.append(label)
    return np.concatenate(ids)


def stack(trace: Trace, node: Node) -> Dims:
    """Tensors side by side along a new axis, which is fixed."""
    a = bind(node)
    where = trace.where(node)
    first, *others = a["tensors"]
    out = trace.dims(first)
    for part in others:
        for dim, label in enumerate(trace.dims(part)):
            out[dim] = trace.join(out[dim], label, where)
    out.insert(a["dim"] % (len(out) + 1), "")
    return out


def split(trace: Trace, node: Node) -> list[Dims]:
    """Equal parts tie position i of each part; unequal ones freeze the axis.

    Their sizes are written in the program. Attention reads the sizes of queries, keys and values
    off its heads, and ties them itself.
    """
    a = bind(node)
    x = trace.dims(a["self"])
    values = node.meta["val"]
    dim = a["dim"] % len(x)
    label = x[dim]
    if isinstance(label, str):
        return [list(x) for _ in values]
    sizes = [value.shape[dim] for value in values]
    _tie_parts(trace, node, label, sizes)
    out = []
    start = 0
    for size in sizes:
        part = list(x)
        part[dim] = label[start : start + size] if size > 1 else ""
        start += size
        out.append(part)
    return out


def _tie_parts(trace: Trace, node: Node, label: Ids, sizes: list[int]) -> None:
    _, owner = trace.owner(node)
    ties_itself = isinstance(owner, nn.MultiheadAttention) and head_count(owner)
    if len(sizes) == 1 or ties_itself:
        return
    if len(set(sizes)) == 1:
        rows = label.reshape(len(sizes), -1).T
        trace.labels.tie(rows)
    else:
        trace.freeze(label, f"split into parts of sizes {sizes} at {trace.where(node)}")


def unbind(trace: Trace, node: Node) -> list[Dims]:
    """Every position along an axis becomes a tensor; the axis is frozen."""
    a = bind(node)
    x = trace.dims(a["self"])
    label = x.pop(a["dim"] % len(x))
    trace.freeze(label, f"taken apart at {trace.where(node)}")
    return [list(x) for _ in node.meta["val"]]


def one_position(trace: Trace, node: Node) -> Dims:
    """One position along an axis: the axis is frozen and vanishes."""
    a = bind(node)
    x = trace.dims(a["self"])
    label = x.pop(a["dim"] % len(x))
    trace.freeze(label, f"one position is picked at {trace.where(node)}")
    return x


def cut(trace: Trace, node: Node) -> Dims:
    """Slice and narrow: a shortened axis is frozen, since its bounds are written in the program."""
    a = bind(node)
    x = trace.dims(a["self"])
    before = shape(a["self"])
    dim = a["dim"] % len(before)
    if shape(node)[dim] != before[dim]:
        reason = f"sliced at {trace.where(node)}"
        trace.freeze(x[dim], reason)
        x[dim] = reason
    return x


def pick(trace: Trace, node: Node) -> Dims:
    """Indexing by tensors: indexed axes are frozen.

    A single indexed axis gives way to the axes of the index.
    """
    a = bind(node)
    where = trace.where(node)
    x = trace.dims(a["self"])
    if "dim" in a:
        trace.freeze(x[a["dim"]], f"indexed at {where}")
        x[a["dim"]] = ""
        return x
    indexed = [dim for dim, index in enumerate(a["indices"]) if index is not None]
    for dim in indexed:
        trace.freeze(x[dim], f"indexed at {where}")
    if len(indexed) != 1:
        reason = f"indexed along several axes at {where}"
        for label in x:
            trace.freeze(label, reason)
        return [reason] * len(shape(node))
    (dim,) = indexed
    index_rank = len(shape(a["indices"][dim]))
    return [*x[:dim], *[""] * index_rank, *x[dim + 1 :]]


def pad(trace: Trace, node: Node) -> Dims:
    """Padded axes are frozen."""
    source: Any = bind(node).get("self")
    x = trace.dims(source)
    for dim, (before, after) in enumerate(zip(shape(source), shape(node), strict=True)):
        if before != after:
            reason = f"padded at {trace.where(node)}"
            trace.freeze(x[dim], reason)
            x[dim] = reason
    return x


def pixel_shuffle(trace: Trace, node: Node) -> Dims:
    """r x r consecutive channels become one channel: they are one unit."""
    a = bind(node)
    x = trace.dims(a["self"])
    factor = a["upscale_factor"]
    batch = x[0]
    channels = x[1]
    if not isinstance(channels, str):
        rows = channels.reshape(-1, factor * factor)
        trace.labels.tie(rows)
        channels = rows[:, 0] if len(rows) > 1 else ""
    return [batch, channels, "", ""]


def pixel_unshuffle(trace: Trace, node: Node) -> Dims:
    """Each channel becomes r x r consecutive channels, which are one unit."""
    a = bind(node)
    x = trace.dims(a["self"])
    factor = a["downscale_factor"]
    batch = x[0]
    channels = x[1]
    if not isinstance(channels, str):
        channels = np.repeat(channels, factor * factor)
    return [batch, channels, "", ""]


def channel_shuffle(trace: Trace, node: Node) -> Dims:
    """Position (i, j) of (groups, channels per group) moves to (j, i); the groups are tied."""
    a = bind(node)
    x = trace.dims(a["self"])
    channels = x[1]
    if not isinstance(channels, str):
        rows = channels.reshape(a["groups"], -1).T
        trace.labels.tie(rows)
        x[1] = rows.ravel()
    return x


_VIEW = (
    "view reshape flatten unflatten squeeze unsqueeze _unsafe_view _reshape_alias ravel squeeze_ "
    "unsqueeze_ view_as reshape_as"
)
_PERMUTE = "permute transpose t numpy_T transpose_ t_ swapaxes swapdims"
RULES: dict[str, OpRule] = {
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
    "repeat_interleave": repeat_interleave,
    "stack": stack,
    "unbind": unbind,
    "select": one_position,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
}
"""Rules by the name of the op."""
