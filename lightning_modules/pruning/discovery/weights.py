"""Weights as forward computes them: which parameter stands behind one, and on which axes."""

from __future__ import annotations

import numpy as np
from torch.fx import Graph, Node

from lightning_modules.pruning.discovery.labels import Label
from lightning_modules.pruning.discovery.trace import Trace, op_name, shape
from lightning_modules.pruning.structure import Kind, Skipped

COMPUTED = "its weight is computed in forward from other axes than those of one parameter"
"""Why a layer stays whole whose weight leads back to no parameter."""


def producer(trace: Trace, weight: Node, node: Node, dims: tuple[int, int], kind: Kind) -> None:
    """Register the parameter behind a weight as producer along `dims[0]`, consumer along
    `dims[1]`.

    The weight may be laid out anew, scaled, masked or normalised. Its axes are found in the
    parameter by their ids. Where they are not found, the layer is noted as skipped.
    """
    name = trace.origins.get(weight)
    if name is None:
        trace.weights.setdefault(f"{trace.layer(node)}.weight")
        trace.notes.setdefault(Skipped(trace.layer(node), COMPUTED))
        return
    labels = trace.dims(weight)
    trace.weights.setdefault(name)
    out, into = dims
    trace.producers.setdefault((name, _own_dim(trace, name, labels[out], out)), kind)
    trace.consumers.add((name, _own_dim(trace, name, labels[into], into)))


def _own_dim(trace: Trace, name: str, label: Label, dim: int) -> int:
    """The dimension of the parameter that a label comes from; `dim` where that cannot be told."""
    if isinstance(label, str):
        return dim
    roots = trace.labels.roots(label)
    own = [axis for axis in trace.axes if axis[0] == name]
    for axis in sorted(own, key=lambda axis: axis[1] != dim):
        if np.isin(roots, trace.labels.roots(trace.axes[axis])).all():
            return axis[1]
    return dim


def inherit(trace: Trace, node: Node, multiplies: bool) -> None:
    """Note that a value is computed from parameters and constants alone, and from which.

    Unless the op multiplies matrices, a value with as many elements as one of its inputs has the
    axes of the parameter behind that input.
    """
    sources = node.all_input_nodes
    if not all(source in trace.static for source in sources):
        return
    trace.static.add(node)
    if multiplies or node in trace.origins:
        return
    size = _elements(node)
    for is_parameter in (True, False):
        for source in sources:
            name = trace.origins.get(source)
            known = name is not None and (name in trace.parameters) == is_parameter
            if known and _elements(source) == size > 1:
                trace.origins[node] = str(name)
                return


def _elements(node: Node) -> int:
    return int(np.prod(shape(node)))


def kernels(graph: Graph) -> set[Node]:
    """The inputs of the graph that become weights of convolutions, perhaps by way of other ops.

    The positions of their kernels are no units.
    """
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and op_name(node).startswith("conv"):
            weight = node.args[1]
            if isinstance(weight, Node):
                found |= _same_kernel(weight)
    return found


def _same_kernel(weight: Node) -> set[Node]:
    """The placeholders behind a weight that have its kernel, and at least one place in it."""
    sizes = shape(weight)[2:]
    found: set[Node] = set()
    seen: set[Node] = set()
    waiting = [weight]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder" and shape(node)[2:] == sizes:
            found.add(node)
        waiting += node.all_input_nodes
    return found
