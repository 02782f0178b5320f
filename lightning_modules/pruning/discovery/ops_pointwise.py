"""Rules for ops that keep axes in place: element by element, normalisation, pooling, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_modules.pruning.discovery.labels import Dims, Label
from lightning_modules.pruning.discovery.trace import OpRule, Trace, bind, op_name, shape


def broadcast(trace: Trace, values: Sequence[tuple[Dims, list[int]]], where: str) -> Dims:
    """The labels of the broadcast of several (labels, sizes), aligned at the last dimension."""
    rank = max(len(sizes) for _, sizes in values)
    out = []
    for back in range(rank, 0, -1):
        aligned = [(dims[-back], sizes[-back]) for dims, sizes in values if len(sizes) >= back]
        out.append(_met(trace, aligned, where))
    return out


def _met(trace: Trace, aligned: Sequence[tuple[Label, int]], where: str) -> Label:
    """The label of one axis of a broadcast; operands of size 1 along it take part in no tie."""
    widest = max(size for _, size in aligned)
    met: Label | None = None
    for label, size in aligned:
        if size == widest:
            met = label if met is None else trace.join(met, label, where)
    return "" if met is None else met


def pointwise(trace: Trace, node: Node) -> Dims:
    """All tensor arguments broadcast.

    Dividing by a pruned channel is not the same as dividing by its zeros.
    """
    divisor = _divisor(node)
    if isinstance(divisor, Node):
        for label in trace.dims(divisor):
            trace.inexact(label)
    values = []
    for argument in node.all_input_nodes:
        if argument.meta.get("val") is not None:
            values.append((trace.dims(argument), shape(argument)))
    return broadcast(trace, values, trace.where(node))


def _divisor(node: Node) -> Any:
    """The argument that an op does not take at zero."""
    if op_name(node) in DIVISIONS:
        return node.args[1]
    if op_name(node) in POLES:
        return node.args[0]
    return None


def same(trace: Trace, node: Node) -> Dims:
    """The first argument's axes, unchanged."""
    return trace.dims(node.all_input_nodes[0])


def fill(trace: Trace, node: Node) -> Dims:
    """A new tensor of constants: its sizes are written in the program."""
    return [""] * len(shape(node))


def _join_axis(trace: Trace, x: Dims, dim: int, tensor: Node | None, where: str) -> None:
    """Join axis `dim` of `x` with a vector of parameters, if there is one."""
    if tensor is not None and shape(tensor) != [1]:
        x[dim] = trace.join(x[dim], trace.dims(tensor)[0], where)


def prelu(trace: Trace, node: Node) -> Dims:
    """PReLU has a slope per channel, or one for all."""
    a = bind(node)
    x = trace.dims(a["self"])
    if len(x) > 1:
        _join_axis(trace, x, 1, a["weight"], trace.where(node))
    return x


def channel_norm(trace: Trace, node: Node) -> Dims:
    """Batch and instance norm: scale, shift and statistics lie on axis 1."""
    a = bind(node)
    where = trace.where(node)
    x = trace.dims(a["input"])
    shows_size = a["weight"] is not None or a["running_mean"] is not None
    if isinstance(trace.owner(node)[1], _InstanceNorm) and not shows_size:
        # the module compares its `num_features` with the input, and no tensor tells the new value
        trace.freeze(x[1], f"{where} has no weight that shows its size; affine=True gives it one")
    for name in ("weight", "bias", "running_mean", "running_var"):
        _join_axis(trace, x, 1, a[name], where)
    if a["running_mean"] is None:  # its statistics are taken over all other axes
        for label in [*x[:1], *x[2:]]:
            trace.inexact(label)
    return x


def weight_norm(trace: Trace, node: Node) -> Dims:
    """A direction over its norm, times a magnitude for each position along one axis.

    A direction of zeros has no norm to be divided by.
    """
    a = bind(node)
    x = trace.dims(a["v"])
    dim = a["dim"]
    trace.inexact(x[dim])
    x[dim] = trace.join(x[dim], trace.dims(a["g"])[dim], trace.where(node))
    return x


def layer_norm(trace: Trace, node: Node) -> Dims:
    """Layer and RMS norm reduce over the last axes.

    Their shape can be adapted only if a weight shows it.
    """
    a = bind(node)
    where = trace.where(node)
    x = trace.dims(a["input"])
    first = len(x) - len(a["normalized_shape"])
    parameters = [a[name] for name in ("weight", "bias") if a.get(name) is not None]
    for dim in range(first, len(x)):
        trace.inexact(x[dim])
        if a["weight"] is None:
            trace.freeze(x[dim], f"{where} has no weight that shows its shape")
        for parameter in parameters:
            if shape(parameter)[dim - first] > 1:
                x[dim] = trace.join(x[dim], trace.dims(parameter)[dim - first], where)
    return x


def group_norm(trace: Trace, node: Node) -> Dims:
    """A whole norm group is one unit; a single group over all channels is like a layer norm."""
    a = bind(node)
    where = trace.where(node)
    x = trace.dims(a["input"])
    groups = a["num_groups"]
    for name in ("weight", "bias"):
        _join_axis(trace, x, 1, a[name], where)
    channels = x[1]
    if isinstance(channels, str):
        return x
    if groups == 1:
        trace.inexact(channels)
    else:
        rows = channels.reshape(groups, -1)
        trace.labels.tie(rows)
    if a["weight"] is None and groups > 1:
        trace.freeze(channels, f"{where} has no weight that shows its shape")
    return x


def pool(trace: Trace, node: Node) -> Dims:
    """Pooling and interpolation act on the last axes and keep batch and channels."""
    rank = _spatial(node)
    where = trace.where(node)
    x = trace.dims(node.all_input_nodes[0])
    first = len(x) - rank
    for label in x[first:]:
        trace.freeze(label, f"pooled or resized over at {where}")
    out: Dims = [*x[:first], *[""] * rank]
    if isinstance(node.meta["val"], (tuple, list)):  # with the places of the maxima
        return [out, out]  # type: ignore[list-item]
    return out


def _spatial(node: Node) -> int:
    """The number of axes that an op pools over."""
    name = op_name(node)
    for rank in (1, 2, 3):
        if f"{rank}d" in name:
            return rank
    return max(len(shape(node.all_input_nodes[0])) - 2, 0)


def softmax(trace: Trace, node: Node) -> Dims:
    """A softmax reduces over its axis."""
    a = bind(node)
    x = trace.dims(a["self"])
    trace.inexact(x[a["dim"]])
    return x


def reduction(trace: Trace, node: Node) -> Dims | list[Dims]:
    """Sum, mean, max, norm and so on: the reduced axes vanish, or stay with size 1."""
    a = bind(node)
    if isinstance(a.get("other"), Node):  # the larger of two tensors, element by element
        return pointwise(trace, node)
    x = trace.dims(a["self"])
    over = _reduced(a.get("dim"), len(x))
    if node.users:  # attention averages weights that nobody reads
        for dim in over:
            trace.inexact(x[dim])
    keep = bool(a.get("keepdim"))
    out: Dims = []
    for dim, label in enumerate(x):
        if dim not in over:
            out.append(label)
        elif keep:
            out.append("")
    value = node.meta["val"]
    if isinstance(value, (tuple, list)):
        return [list(out) for _ in value]
    return out


def _reduced(dim: Any, rank: int) -> set[int]:
    """The axes that an op with the argument `dim` reduces over."""
    if rank == 0:
        return set()
    if dim is None or dim == []:
        return set(range(rank))
    dims = [dim] if isinstance(dim, int) else dim
    return {each % rank for each in dims}


def along(trace: Trace, node: Node) -> Dims:
    """Roll and flip: positions move along the named axes, which therefore stay whole."""
    a = bind(node)
    x = trace.dims(a["self"])
    for dim in a["dims"] or range(len(x)):
        trace.freeze(x[dim], f"positions move along it at {trace.where(node)}")
    return x


def glu(trace: Trace, node: Node) -> Dims:
    """The halves of an axis multiply each other: positions i and i + n/2 are one unit."""
    a = bind(node)
    x = trace.dims(a["self"])
    dim = a["dim"]
    label = x[dim]
    if not isinstance(label, str):
        first, second = label.reshape(2, -1)
        trace.labels.union(first, second)
        x[dim] = np.ascontiguousarray(first)
    return x


DIVISIONS = frozenset(("div", "div_", "divide", "true_divide", "floor_divide", "remainder", "fmod"))
"""Ops that divide by their second argument."""
POLES = frozenset(("reciprocal", "rsqrt", "log", "log_", "log2", "log10"))
"""Ops that are infinite at zero."""
_SAME = (
    "dropout dropout_ feature_dropout alpha_dropout feature_alpha_dropout native_dropout clone "
    "contiguous to alias detach detach_ lift_fresh lift_fresh_copy _to_copy type_as float double "
    "requires_grad_ hardswish hardswish_ relu6 relu6_ selu selu_ rrelu hardtanh hardtanh_ "
    "log_sigmoid logsigmoid mish silu softplus zeros_like ones_like full_like empty_like rand_like "
    "randn_like bernoulli bernoulli_"
)
_POOL = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d max_pool2d_with_indices upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d "
    "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa"
)
_REDUCE = (
    "mean sum amax amin max min prod var std var_mean linalg_vector_norm norm logsumexp argmax "
    "argmin any all"
)
_FILL = (
    "zeros ones full new_zeros new_ones new_full new_empty empty arange scalar_tensor rand randn "
    "eye linspace"
)
_POINTWISE = "copy_ fill_ masked_fill masked_fill_ where div div_ mul add"
RULES: dict[str, OpRule] = {
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_FILL.split(), fill),
    **dict.fromkeys(_POOL.split(), pool),
    **dict.fromkeys(_REDUCE.split(), reduction),
    **dict.fromkeys(_POINTWISE.split(), pointwise),
    **dict.fromkeys(("batch_norm", "instance_norm"), channel_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(("roll", "flip"), along),
    "group_norm": group_norm,
    "prelu": prelu,
    "_weight_norm": weight_norm,
    "glu": glu,
}
"""Rules by the name of the op."""
