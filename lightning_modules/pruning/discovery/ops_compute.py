"""Rules for ops that multiply and sum over an axis: what produces and what consumes units."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from lightning_modules.pruning.attention import head_count
from lightning_modules.pruning.discovery.labels import Dims, Ids, Label
from lightning_modules.pruning.discovery.ops_pointwise import broadcast
from lightning_modules.pruning.discovery.trace import Rule, Trace, bind, shape


def _name(trace: Trace, weight: Node, node: Node) -> str:
    if weight in trace.origins:
        return trace.origins[weight].rpartition(".")[0] or trace.origins[weight]
    return trace.owner(node)[0] or node.name


def _weight(
    trace: Trace, weight: Node, out_dim: int, in_dim: int, kind: str
) -> tuple[Label, Label]:
    """Labels of a weight's (output, input) axes, registered as producer and consumer if it is a parameter."""
    dims = trace.dims(weight)
    name = trace.origins.get(weight)
    if name is not None:
        trace.weights.setdefault(name)
        trace.producers.setdefault((name, out_dim), "neuron" if kind == "neuron" else "channel")
        trace.consumers.add((name, in_dim))
    return dims[out_dim], dims[in_dim]


def _bias(trace: Trace, bias: Node | None, out: Label, where: str) -> Label:
    return (
        out if bias is None or shape(bias) == [1] else trace.join(out, trace.dims(bias)[0], where)
    )


def _tie_groups(trace: Trace, left: Label, right: Label, groups: int, where: str) -> Label:
    """Make each convolution group one unit: its inputs, its outputs, all or nothing; returns the output label."""
    if isinstance(left, str) or isinstance(right, str):
        if isinstance(left, str) and not isinstance(right, str):
            trace.freeze(
                right, left or f"grouped convolution over an axis of fixed size at {where}"
            )
        if isinstance(right, str) and not isinstance(left, str):
            trace.freeze(left, right or f"grouped convolution with a fixed weight at {where}")
        return right
    rows: Ids = np.concatenate([left.reshape(groups, -1), right.reshape(groups, -1)], axis=1)
    trace.labels.union(rows[:, :1], rows[:, 1:])
    if left.size > groups:
        trace.labels.mark(rows, "conv_group")
    return right


def conv(trace: Trace, node: Node) -> Dims:
    a, where = bind(node), trace.where(node)
    x, weight, groups = trace.dims(a["input"]), a["weight"], a["groups"]
    size, spatial = shape(weight), shape(node)[-len(shape(weight)) + 2 :]
    channel = len(shape(node)) - len(spatial) - 1
    out, into = _weight(trace, weight, 0, 1, "channel")
    for label in x[channel + 1 :]:
        trace.freeze(label, f"convolved over at {where}")
    if groups == 1:
        trace.join(into, x[channel], where) if size[1] > 1 else trace.freeze(
            x[channel], f"one input at {where}"
        )
    else:
        trace.freeze(into, f"width of one convolution group at {where}")
        out = _tie_groups(trace, x[channel], out, groups, where)
    out = _bias(trace, a["bias"], out, where)
    trace.multiply(
        _name(trace, weight, node),
        [*shape(node)[:channel], *size[:2]],
        [*x[:channel], out, into if groups == 1 else ""],
        math.prod(size[2:]) * math.prod(spatial),
        trace.parameter(weight),
    )
    return [*x[:channel], out, *[""] * len(spatial)]


def conv_transpose(trace: Trace, node: Node) -> Dims:
    a, where = bind(node), trace.where(node)
    x, weight, groups = trace.dims(a["input"]), a["weight"], a["groups"]
    size, spatial = shape(weight), shape(a["input"])[-len(shape(weight)) + 2 :]
    channel = len(shape(node)) - len(spatial) - 1
    out, into = _weight(trace, weight, 1, 0, "channel")
    for label in x[channel + 1 :]:
        trace.freeze(label, f"convolved over at {where}")
    into = trace.join(into, x[channel], where)
    if groups > 1:
        trace.freeze(out, f"width of one convolution group at {where}")
        trace.freeze(into, f"grouped transposed convolution at {where}")
        out = f"grouped transposed convolution at {where}"
    elif size[1] == 1:
        out = ""
    out = _bias(trace, a["bias"], out, where)
    trace.multiply(
        _name(trace, weight, node),
        [*shape(node)[:channel], *size[:2]],
        [*x[:channel], into, out if groups == 1 else ""],
        math.prod(size[2:]) * math.prod(spatial),
        trace.parameter(weight),
    )
    return [*x[:channel], out, *[""] * len(spatial)]


def linear(trace: Trace, node: Node) -> Dims:
    a, where = bind(node), trace.where(node)
    x, weight = trace.dims(a["input"]), a["weight"]
    if len(shape(weight)) == 1:
        trace.join(trace.dims(weight)[0], x[-1], where)
        return x[:-1]
    out, into = _weight(trace, weight, 0, 1, "neuron")
    into = trace.join(into, x[-1], where)
    out = _bias(trace, a["bias"], out, where)
    sizes, tensor = [*shape(a["input"])[:-1], *shape(weight)], trace.parameter(weight)
    trace.multiply(_name(trace, weight, node), sizes, [*x[:-1], out, into], tensor=tensor)
    return [*x[:-1], out]


def matmul(trace: Trace, node: Node) -> Dims:
    """matmul, mm and bmm; a parameter as the second operand is a weight of shape (..., inputs, outputs)."""
    left, right = node.args[0], node.args[1]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    return _product(trace, node, left, right)


def addmm(trace: Trace, node: Node) -> Dims:
    """addmm and baddbmm: a product plus a broadcast term."""
    term, left, right = node.args[:3]
    assert isinstance(term, Node)
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    out = _product(trace, node, left, right)
    return broadcast(
        trace, [(out, shape(node)), (trace.dims(term), shape(term))], trace.where(node)
    )


def _product(trace: Trace, node: Node, left: Node, right: Node) -> Dims:
    where, a, b, tensor = (
        trace.where(node),
        trace.dims(left),
        trace.dims(right),
        trace.parameter(left, right),
    )
    if right in trace.tensors and len(b) == 2:
        _weight(trace, right, 1, 0, "neuron")
    if len(b) == 1:
        trace.join(a[-1], b[0], where)
        trace.multiply(_name(trace, right, node), shape(left), a, tensor=tensor)
        return a[:-1]
    if len(a) == 1:
        trace.join(a[0], b[-2], where)
        trace.multiply(_name(trace, right, node), shape(right), b, tensor=tensor)
        return [*b[:-2], b[-1]]
    inner = trace.join(a[-1], b[-2], where)
    batch = broadcast(trace, [(a[:-2], shape(left)[:-2]), (b[:-2], shape(right)[:-2])], where)
    sizes = [*shape(node)[:-2], shape(left)[-2], shape(right)[-1], shape(left)[-1]]
    trace.multiply(_name(trace, right, node), sizes, [*batch, a[-2], b[-1], inner], tensor=tensor)
    return [*batch, a[-2], b[-1]]


def einsum(trace: Trace, node: Node) -> Dims | None:
    """Two operands with one letter per axis: equal letters are one axis. Anything else has no rule."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not isinstance(operands, list | tuple) or len(operands) != 2 or not arrow or "." in equation:
        return None
    if any(len(set(term)) < len(term) for term in terms):
        return None
    met: dict[str, Label] = {}
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        assert isinstance(operand, Node)
        for letter, label, size in zip(term, trace.dims(operand), shape(operand), strict=True):
            if sizes.get(letter, 1) == 1:
                met[letter], sizes[letter] = label, size
            elif size > 1:
                met[letter] = trace.join(met[letter], label, trace.where(node))
    labels, tensor = [met[letter] for letter in sizes], trace.parameter(*operands)
    trace.multiply(trace.owner(node)[0] or node.name, list(sizes.values()), labels, tensor=tensor)
    return [met[letter] for letter in out]


def attention(trace: Trace, node: Node) -> Dims:
    """Scaled dot product attention, shapes (..., heads, tokens, width): Q K^T and A V."""
    a, where = bind(node), trace.where(node)
    q, k, v = (trace.dims(a[name]) for name in ("query", "key", "value"))
    width = trace.join(q[-1], k[-1], where)
    if trace.attention == "head" or head_count(trace.owner(node)[1]) is None:
        trace.freeze(width, f"width of an attention head at {where}")
        trace.freeze(v[-1], f"width of an attention head at {where}")
    tokens = trace.join(k[-2], v[-2], where)
    trace.freeze(tokens, f"attended over at {where}")
    shapes = [shape(a[name])[:-2] for name in ("query", "key", "value")]
    if shapes[0] != shapes[1]:
        for label in (*q[:-2], *k[:-2], *v[:-2]):
            trace.freeze(label, f"queries share keys at {where}")
    batch = broadcast(trace, list(zip((q[:-2], k[:-2], v[:-2]), shapes, strict=True)), where)
    if isinstance(a["attn_mask"], Node):
        mask, size = trace.dims(a["attn_mask"]), shape(a["attn_mask"])
        batch = broadcast(trace, [(batch, shapes[0]), (mask[:-2], size[:-2])], where)
    keys, path = shape(a["key"])[-2], trace.owner(node)[0] or node.name
    for name, label, of in (("scores", width, "query"), ("values", v[-1], "value")):
        sizes = [*shape(node)[:-1], shape(a[of])[-1]]
        trace.multiply(f"{path}.{name}", sizes, [*batch, q[-2], label], keys)
    return [*batch, q[-2], v[-1]]


def embedding(trace: Trace, node: Node) -> Dims:
    a, where = bind(node), trace.where(node)
    vocabulary, width = trace.dims(a["weight"])
    trace.freeze(vocabulary, f"indexed by {where}")
    if a["weight"] in trace.tensors:
        trace.producers.setdefault((trace.tensors[a["weight"]], 1), "channel")
    return [*trace.dims(a["indices"]), width]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    "einsum": einsum,
}
