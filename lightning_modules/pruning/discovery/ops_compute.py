"""Rules for ops that multiply and sum over an axis: they produce and consume units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from lightning_modules.pruning.attention import head_count
from lightning_modules.pruning.discovery.labels import Dims, Ids, Label
from lightning_modules.pruning.discovery.ops_pointwise import broadcast
from lightning_modules.pruning.discovery.trace import OpRule, Trace, bind, shape
from lightning_modules.pruning.discovery.weights import producer
from lightning_modules.pruning.spellings import takes_width_of_input
from lightning_modules.pruning.structure import Kind


def _name(trace: Trace, weight: Node, node: Node) -> str:
    """The layer that a weight belongs to, or else the module or the node that multiplies."""
    if weight in trace.origins:
        tensor = trace.origins[weight]
        return tensor.rpartition(".")[0] or tensor
    return trace.layer(node)


def _weight(
    trace: Trace, weight: Node, node: Node, dims: tuple[int, int], kind: Kind = "channel"
) -> tuple[Label, Label]:
    """The labels of the (output, input) axes `dims` of the weight of `node`, which is registered
    as producer and as consumer.
    """
    producer(trace, weight, node, dims, kind)
    labels = trace.dims(weight)
    return labels[dims[0]], labels[dims[1]]


def _bias(trace: Trace, bias: Node | None, out: Label, where: str) -> Label:
    """The label of an op's outputs, joined with its bias."""
    if bias is None or shape(bias) == [1]:
        return out
    return trace.join(out, trace.dims(bias)[0], where)


def _tie_groups(trace: Trace, left: Label, right: Label, groups: int, where: str) -> Label:
    """Make the inputs and outputs of each convolution group one unit; return the output label."""
    if isinstance(left, str):
        trace.freeze(right, left or f"grouped convolution over an axis of fixed size at {where}")
        return right
    if isinstance(right, str):
        trace.freeze(left, right or f"grouped convolution with a fixed weight at {where}")
        return right
    inputs = left.reshape(groups, -1)
    outputs = right.reshape(groups, -1)
    rows: Ids = np.concatenate([inputs, outputs], axis=1)
    trace.labels.tie(rows)
    if left.size > groups:
        trace.labels.mark(rows, "conv_group")
    return right


def _count_convolution(
    trace: Trace, node: Node, weight: Node, labels: Dims, places: list[int]
) -> None:
    """Record a convolution's MACs.

    `labels` are those of the batch and of the weight's first two axes; `places` are the sizes of
    the axes that it slides over.
    """
    sizes = shape(weight)
    batch = shape(node)[: len(labels) - 2]
    per_channel = math.prod(sizes[2:]) * math.prod(places)
    name = _name(trace, weight, node)
    trace.multiply(name, [*batch, *sizes[:2]], labels, per_channel, trace.parameter(weight))


def conv(trace: Trace, node: Node) -> Dims:
    """Convolutions of any rank, with or without a batch."""
    a = bind(node)
    where = trace.where(node)
    weight = a["weight"]
    groups = a["groups"]
    x = trace.dims(a["input"])
    rank = len(shape(weight)) - 2
    channel = len(shape(node)) - rank - 1
    batch = x[:channel]
    out, into = _weight(trace, weight, node, (0, 1))
    for label in x[channel + 1 :]:
        trace.freeze(label, f"convolved over at {where}")
    if groups > 1:
        trace.freeze(into, f"width of one convolution group at {where}")
        out = _tie_groups(trace, x[channel], out, groups, where)
    elif shape(weight)[1] > 1:
        trace.join(into, x[channel], where)
    else:
        trace.freeze(x[channel], f"one input at {where}")
    out = _bias(trace, a["bias"], out, where)
    labels = [*batch, out, into if groups == 1 else ""]
    _count_convolution(trace, node, weight, labels, shape(node)[channel + 1 :])
    return [*batch, out, *[""] * rank]


def conv_transpose(trace: Trace, node: Node) -> Dims:
    """Transposed convolutions of any rank, with or without a batch."""
    a = bind(node)
    where = trace.where(node)
    weight = a["weight"]
    groups = a["groups"]
    x = trace.dims(a["input"])
    rank = len(shape(weight)) - 2
    channel = len(shape(node)) - rank - 1
    batch = x[:channel]
    out, into = _weight(trace, weight, node, (1, 0))
    for label in x[channel + 1 :]:
        trace.freeze(label, f"convolved over at {where}")
    into = trace.join(into, x[channel], where)
    if groups > 1:
        trace.freeze(out, f"width of one convolution group at {where}")
        trace.freeze(into, f"grouped transposed convolution at {where}")
        out = f"grouped transposed convolution at {where}"
    elif shape(weight)[1] == 1:
        out = ""
    out = _bias(trace, a["bias"], out, where)
    labels = [*batch, into, out if groups == 1 else ""]
    _count_convolution(trace, node, weight, labels, shape(a["input"])[-rank:])
    return [*batch, out, *[""] * rank]


def linear_layer(trace: Trace, node: Node) -> Dims:
    """Linear layers; a weight of one dimension gives a single output without an axis."""
    a = bind(node)
    where = trace.where(node)
    x = trace.dims(a["input"])
    weight = a["weight"]
    batch = x[:-1]
    if len(shape(weight)) == 1:
        trace.join(trace.dims(weight)[0], x[-1], where)
        return batch
    out, into = _weight(trace, weight, node, (0, 1), "neuron")
    into = trace.join(into, x[-1], where)
    out = _bias(trace, a["bias"], out, where)
    sizes = [*shape(a["input"])[:-1], *shape(weight)]
    name = _name(trace, weight, node)
    tensor = trace.parameter(weight)
    trace.multiply(name, sizes, [*batch, out, into], tensor=tensor)
    return [*batch, out]


def matmul(trace: Trace, node: Node) -> Dims:
    """matmul, mm and bmm.

    A parameter as the second operand is a weight of shape (..., inputs, outputs).
    """
    left = node.args[0]
    right = node.args[1]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    return _product(trace, node, left, right)


def addmm(trace: Trace, node: Node) -> Dims:
    """addmm and baddbmm: a product plus a term that broadcasts."""
    term, left, right = node.args[:3]
    assert isinstance(term, Node)
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    product = (_product(trace, node, left, right), shape(node))
    return broadcast(trace, [product, (trace.dims(term), shape(term))], trace.where(node))


def _product(trace: Trace, node: Node, left: Node, right: Node) -> Dims:
    where = trace.where(node)
    a = trace.dims(left)
    b = trace.dims(right)
    tensor = trace.parameter(left, right)
    if right in trace.origins and len(b) == 2 and left not in trace.static:
        _weight(trace, right, node, (1, 0), "neuron")
    name = _name(trace, right, node)
    if len(b) == 1:
        trace.join(a[-1], b[0], where)
        trace.multiply(name, shape(left), a, tensor=tensor)
        return a[:-1]
    if len(a) == 1:
        trace.join(a[0], b[-2], where)
        trace.multiply(name, shape(right), b, tensor=tensor)
        return [*b[:-2], b[-1]]
    inner = trace.join(a[-1], b[-2], where)
    left_batch = (a[:-2], shape(left)[:-2])
    right_batch = (b[:-2], shape(right)[:-2])
    batch = broadcast(trace, [left_batch, right_batch], where)
    out = [*batch, a[-2], b[-1]]
    inner_size = shape(left)[-1]
    sizes = [*shape(node), inner_size]
    trace.multiply(name, sizes, [*out, inner], tensor=tensor)
    return out


def dot(trace: Trace, node: Node) -> Dims:
    """The product of two vectors, which leaves no axis."""
    left, right = node.args[:2]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    trace.join(trace.dims(left)[0], trace.dims(right)[0], trace.where(node))
    return []


def einsum(trace: Trace, node: Node) -> Dims | None:
    """Two operands with one letter per axis, of which equal letters are one axis.

    Anything else has no rule.
    """
    equation = str(node.args[0]).replace(" ", "")
    operands = node.args[1]
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not isinstance(operands, list | tuple) or len(operands) != 2:
        return None
    if not arrow or "." in equation:
        return None
    if any(len(set(term)) < len(term) for term in terms):
        return None
    labels: dict[str, Label] = {}
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        assert isinstance(operand, Node)
        for letter, label, size in zip(term, trace.dims(operand), shape(operand), strict=True):
            if sizes.get(letter, 1) == 1:
                labels[letter], sizes[letter] = label, size
            elif size > 1:
                labels[letter] = trace.join(labels[letter], label, trace.where(node))
    _einsum_weights(trace, terms, operands, out)
    name = trace.layer(node)
    tensor = trace.parameter(*operands)
    trace.multiply(name, list(sizes.values()), list(labels.values()), tensor=tensor)
    return [labels[letter] for letter in out]


def _einsum_weights(trace: Trace, terms: Sequence[str], operands: Sequence[Any], out: str) -> None:
    """A parameter that meets activations produces the letters that they lack, and consumes the
    others.
    """
    for index, operand in enumerate(operands):
        name = trace.tensors.get(operand)
        if name not in trace.parameters or operands[1 - index] in trace.static:
            continue
        trace.weights.setdefault(name)
        for dim, letter in enumerate(terms[index]):
            if letter not in out:
                trace.consumers.add((name, dim))
            elif letter not in terms[1 - index]:
                trace.producers.setdefault((name, dim), "neuron")


def attention(trace: Trace, node: Node) -> Dims:
    """Scaled dot product attention: Q K^T and A V, of shapes (..., heads, tokens, width)."""
    a = bind(node)
    where = trace.where(node)
    q = trace.dims(a["query"])
    k = trace.dims(a["key"])
    v = trace.dims(a["value"])
    width = trace.join(q[-1], k[-1], where)
    _, owner = trace.owner(node)
    if takes_width_of_input(owner):
        trace.inexact(width)  # the kernel scales by the width that it sees
    elif trace.attention == "head" or head_count(owner) is None:
        trace.freeze(width, f"width of an attention head at {where}")
        trace.freeze(v[-1], f"width of an attention head at {where}")
    tokens = trace.join(k[-2], v[-2], where)
    trace.freeze(tokens, f"attended over at {where}")
    batches = (q[:-2], k[:-2], v[:-2])
    if isinstance(owner, nn.MultiheadAttention):
        a["attn_mask"] = None  # the module lays its masks over the heads that are left
    batch = _attention_batch(trace, a, batches, where)
    keys = shape(a["key"])[-2]
    path = trace.layer(node)
    queries = [*batch, q[-2]]
    out_sizes = shape(node)[:-1]
    scores = [*out_sizes, shape(a["query"])[-1]]
    trace.multiply(f"{path}.scores", scores, [*queries, width], keys)
    values = [*out_sizes, shape(a["value"])[-1]]
    trace.multiply(f"{path}.values", values, [*queries, v[-1]], keys)
    return [*queries, v[-1]]


def _attention_batch(
    trace: Trace, a: dict[str, Any], labels: tuple[Dims, Dims, Dims], where: str
) -> Dims:
    """The labels in front of tokens and width, heads included, of all operands and the mask."""
    operands = ("query", "key", "value")
    sizes = [shape(a[name])[:-2] for name in operands]
    if a.get("enable_gqa"):
        _share_keys(labels, sizes)
    if sizes[0] != sizes[1]:
        for dims in labels:
            for label in dims:
                trace.freeze(label, f"queries share keys at {where}")
    batch = broadcast(trace, list(zip(labels, sizes, strict=True)), where)
    mask = a["attn_mask"]
    if not isinstance(mask, Node):
        return batch
    mask_batch = (trace.dims(mask)[:-2], shape(mask)[:-2])
    return broadcast(trace, [(batch, sizes[0]), mask_batch], where)


def _share_keys(labels: tuple[Dims, Dims, Dims], sizes: list[list[int]]) -> None:
    """Repeat the heads of keys and values, in place, for the queries that share them."""
    for dims, own in zip(labels[1:], sizes[1:], strict=True):
        label = dims[-1]
        times = sizes[0][-1] // own[-1]
        if not isinstance(label, str):
            dims[-1] = np.repeat(label, times)
        own[-1] *= times


def embedding(trace: Trace, node: Node) -> Dims:
    """An embedding produces its width; its vocabulary stays whole."""
    a = bind(node)
    where = trace.where(node)
    weight = a["weight"]
    vocabulary, width = trace.dims(weight)
    trace.freeze(vocabulary, f"indexed by {where}")
    if weight in trace.tensors:
        trace.producers.setdefault((trace.tensors[weight], 1), "channel")
    return [*trace.dims(a["indices"]), width]


RULES: dict[str, OpRule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    "linear": linear_layer,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), matmul),
    **dict.fromkeys(("dot", "vdot"), dot),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    "einsum": einsum,
}
"""Rules by the name of the op."""
