"""Rules for ops that keep axes in place: element by element, normalisation, pooling, reductions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.fx import Node
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_modules.pruning.discovery.labels import Dims, Label
from lightning_modules.pruning.discovery.trace import Rule, Trace, bind, op_name, shape


def broadcast(trace: Trace, values: Sequence[tuple[Dims, list[int]]], where: str) -> Dims:
    """Labels of the broadcast of several (labels, sizes), aligned at the last dimension."""
    rank, out = max(len(sizes) for _, sizes in values), []
    for back in range(rank, 0, -1):
        here = [(dims[-back], sizes[-back]) for dims, sizes in values if len(sizes) >= back]
        widest = max(size for _, size in here)
        met: Label | None = None
        for label, size in here:
            if size == widest:
                met = label if met is None else trace.join(met, label, where)
        out.append("" if met is None else met)
    return out


def pointwise(trace: Trace, node: Node) -> Dims:
    """All tensor arguments broadcast; dividing by a pruned channel is not the same as dividing by its zeros."""
    tensors = [
        argument for argument in node.all_input_nodes if argument.meta.get("val") is not None
    ]
    divisor = (
        node.args[1]
        if op_name(node) in DIVISIONS
        else node.args[0]
        if op_name(node) in POLES
        else None
    )
    if isinstance(divisor, Node):
        for label in trace.dims(divisor):
            trace.inexact(label)
    return broadcast(trace, [(trace.dims(t), shape(t)) for t in tensors], trace.where(node))


def same(trace: Trace, node: Node) -> Dims:
    """The first argument's axes, unchanged."""
    return trace.dims(node.all_input_nodes[0])


def fill(trace: Trace, node: Node) -> Dims:
    """A new tensor of constants: its sizes are written in the program."""
    return [""] * len(shape(node))


def prelu(trace: Trace, node: Node) -> Dims:
    a = bind(node)
    x = trace.dims(a["self"])
    if len(x) > 1 and shape(a["weight"]) != [1]:
        x[1] = trace.join(x[1], trace.dims(a["weight"])[0], trace.where(node))
    return x


def channel_norm(trace: Trace, node: Node) -> Dims:
    """Batch and instance norm: scale, shift and statistics sit on axis 1."""
    a, x = bind(node), trace.dims(bind(node)["input"])
    if (
        isinstance(trace.owner(node)[1], _InstanceNorm)
        and a["weight"] is None
        and a["running_mean"] is None
    ):
        # The module compares its `num_features` with the input, and no tensor says what it should become.
        trace.freeze(
            x[1], f"{trace.where(node)} has no weight that shows its size; affine=True gives it one"
        )
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a[name] is not None and shape(a[name]) != [1]:
            x[1] = trace.join(x[1], trace.dims(a[name])[0], trace.where(node))
    return x


def layer_norm(trace: Trace, node: Node) -> Dims:
    """Layer and RMS norm reduce over the last axes; their shape can be mended only if it shows in a weight."""
    a, x, where = bind(node), trace.dims(bind(node)["input"]), trace.where(node)
    first = len(x) - len(a["normalized_shape"])
    for dim in range(first, len(x)):
        trace.inexact(x[dim])
        if a["weight"] is None:
            trace.freeze(x[dim], f"{where} has no weight that shows its shape")
        for name in ("weight", "bias"):
            if a.get(name) is not None and shape(a[name])[dim - first] > 1:
                x[dim] = trace.join(x[dim], trace.dims(a[name])[dim - first], where)
    return x


def group_norm(trace: Trace, node: Node) -> Dims:
    """A whole norm group is one unit; a single group over all channels acts like a layer norm."""
    a, x, where = bind(node), trace.dims(bind(node)["input"]), trace.where(node)
    for name in ("weight", "bias"):
        if a[name] is not None and shape(a[name]) != [1]:
            x[1] = trace.join(x[1], trace.dims(a[name])[0], where)
    if isinstance(x[1], str):
        return x
    if a["num_groups"] == 1:
        trace.inexact(x[1])
    else:
        rows = x[1].reshape(a["num_groups"], -1)
        trace.labels.union(rows[:, :1], rows[:, 1:])
    if a["weight"] is None and a["num_groups"] > 1:
        trace.freeze(x[1], f"{where} has no weight that shows its shape")
    return x


def pool(trace: Trace, node: Node) -> Dims:
    """Pooling and interpolation act on the last axes and keep batch and channels."""
    (source, rank), where = (node.all_input_nodes[0], _spatial(node)), trace.where(node)
    x = trace.dims(source)
    for label in x[len(x) - rank :]:
        trace.freeze(label, f"pooled or resized over at {where}")
    out: Dims = [*x[: len(x) - rank], *[""] * rank]
    return [out, out] if isinstance(node.meta["val"], (tuple, list)) else out  # type: ignore[list-item]


def _spatial(node: Node) -> int:
    name = op_name(node)
    for rank in (1, 2, 3):
        if f"{rank}d" in name:
            return rank
    return max(len(shape(node.all_input_nodes[0])) - 2, 0)


def softmax(trace: Trace, node: Node) -> Dims:
    a = bind(node)
    x = trace.dims(a["self"])
    trace.inexact(x[a["dim"]])
    return x


def reduction(trace: Trace, node: Node) -> Dims | list[Dims]:
    """Sum, mean, max, norm ...: the reduced axes disappear (or stay with size 1)."""
    a = bind(node)
    if isinstance(a.get("other"), Node):  # The larger of two tensors, element by element.
        return pointwise(trace, node)
    x, dim = trace.dims(a["self"]), a.get("dim")
    every = range(len(x)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    over = {d % len(x) for d in every} if x else set()
    for d in over if node.users else ():  # Attention averages weights that nobody reads.
        trace.inexact(x[d])
    keep = bool(a.get("keepdim"))
    out: Dims = ["" if d in over else x[d] for d in range(len(x)) if keep or d not in over]
    value = node.meta["val"]
    return [list(out) for _ in value] if isinstance(value, (tuple, list)) else out


def along(trace: Trace, node: Node) -> Dims:
    """Roll and flip: positions move along the named axes, which therefore stay whole."""
    a = bind(node)
    x = trace.dims(a["self"])
    for d in a["dims"] or range(len(x)):
        trace.freeze(x[d], f"positions move along it at {trace.where(node)}")
    return x


def glu(trace: Trace, node: Node) -> Dims:
    """Halves of an axis multiply each other: position i and i + n/2 are one unit."""
    a = bind(node)
    x = trace.dims(a["self"])
    label = x[a["dim"]]
    if not isinstance(label, str):
        halves = label.reshape(2, -1)
        trace.labels.union(halves[0], halves[1])
        x[a["dim"]] = np.ascontiguousarray(halves[0])
    return x


DIVISIONS = frozenset(("div", "div_", "divide", "true_divide", "floor_divide", "remainder", "fmod"))
POLES = frozenset(("reciprocal", "rsqrt", "log", "log_", "log2", "log10"))
_SAME = (
    "dropout dropout_ feature_dropout alpha_dropout feature_alpha_dropout native_dropout clone contiguous to alias "
    "detach detach_ lift_fresh lift_fresh_copy _to_copy type_as float double requires_grad_ hardswish hardswish_ "
    "relu6 relu6_ selu selu_ rrelu hardtanh hardtanh_ log_sigmoid logsigmoid mish silu softplus "
    "zeros_like ones_like full_like empty_like rand_like randn_like bernoulli bernoulli_"
)
_POOL = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa"
)
_REDUCE = "mean sum amax amin max min prod var std var_mean linalg_vector_norm norm logsumexp argmax argmin any all"
_FILL = "zeros ones full new_zeros new_ones new_full new_empty empty arange scalar_tensor rand randn eye linspace"
RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_FILL.split(), fill),
    **dict.fromkeys(_POOL.split(), pool),
    **dict.fromkeys(_REDUCE.split(), reduction),
    **dict.fromkeys(
        ("copy_", "fill_", "masked_fill", "masked_fill_", "where", "div", "div_", "mul", "add"),
        pointwise,
    ),
    **dict.fromkeys(("batch_norm", "instance_norm"), channel_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(("roll", "flip"), along),
    "group_norm": group_norm,
    "prelu": prelu,
    "glu": glu,
}
