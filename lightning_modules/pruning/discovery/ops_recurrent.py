"""Rules for LSTM, GRU and plain recurrent layers: a unit is one index of the hidden state.

One `hidden_size` serves every layer and direction of a module, so index j is the same unit in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch.fx import Node

from lightning_modules.pruning.discovery.labels import Dims, Ids, Label
from lightning_modules.pruning.discovery.trace import LAYOUTS, Rule, Trace, bind, op_name, shape

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
ZEROS = frozenset(("zeros", "zeros_like", "new_zeros"))


def layers(trace: Trace, node: Node) -> list[Dims]:
    """All layers and directions of one module, inputs of shape (time, batch, width) or (batch, time, width)."""
    a, path = bind(node), trace.owner(node)[0] or node.name
    directions, per_cell = 1 + a["bidirectional"], 4 if a["has_biases"] else 2
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    why = _whole(trace, a["params"], path)
    if "input" not in a:
        why = f"the recurrent layer {path} reads a packed sequence"
    elif len(a["params"]) != a["num_layers"] * directions * per_cell:
        why = f"the recurrent layer {path} projects its hidden state (proj_size)"
    if why is not None:
        return _keep(trace, node, path, why)
    x, steps = trace.dims(a["input"]), math.prod(shape(a["input"])[:-1])
    trace.freeze(x[int(a["batch_first"])], f"recurred over at {trace.where(node)}")
    units: Ids | None = None
    for first in range(0, len(a["params"]), per_cell):
        below = (
            x[-1] if units is None or first < directions * per_cell else np.tile(units, directions)
        )
        units = _cell(trace, node, a["params"][first : first + per_cell], below, units, steps)
    assert units is not None
    for state in states:
        _begin(trace, state, units, path)
    batch = x[1 - int(a["batch_first"])]
    return [[x[0], x[1], np.tile(units, directions)], *[["", batch, units] for _ in states]]


def cell(trace: Trace, node: Node) -> Dims | list[Dims]:
    """One step of LSTMCell, GRUCell or RNNCell, input of shape (batch, width)."""
    a, path = bind(node), trace.owner(node)[0] or node.name
    weights = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if a[name] is not None]
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    why, x = _whole(trace, weights, path), trace.dims(a["input"])
    if why is not None:
        kept = _keep(trace, node, path, why)
        return kept if len(states) > 1 else kept[0]
    units = _cell(trace, node, weights, x[-1], None, math.prod(shape(a["input"])[:-1]))
    for state in states:
        _begin(trace, state, units, path)
    out = [[*x[:-1], units] for _ in states]
    return out if len(states) > 1 else out[0]


def _whole(trace: Trace, weights: Sequence[Node], path: str) -> str | None:
    """Why these weights cannot be taken apart, None if they can."""
    if not all(weight in trace.tensors for weight in weights):
        return f"the recurrent layer {path} has weights that are not parameters"
    if shape(weights[1])[1] == 1:
        return f"the recurrent layer {path} has one hidden unit"
    return None


def _cell(
    trace: Trace, node: Node, weights: Sequence[Node], below: Label, units: Ids | None, steps: int
) -> Ids:
    """Tie one layer and direction: rows of every gate, columns from the layer `below` and from its own past."""
    gates, path = GATES[op_name(node).removesuffix("_cell")], trace.owner(node)[0] or node.name
    for slot, weight in enumerate(weights):
        dims, name = trace.dims(weight), trace.tensors[weight]
        rows = dims[0]
        assert not isinstance(rows, str)
        units = rows.reshape(gates, -1)[0] if units is None else units
        trace.labels.union(rows.reshape(gates, -1), units)
        if slot < 2:
            dims[1] = trace.join(dims[1], below if slot == 0 else units, trace.where(node))
            trace.weights.setdefault(name)
            trace.producers.setdefault((name, 0), "recurrent")
            trace.consumers.add((name, 1))
            trace.multiply(path, shape(weight), dims, steps, trace.parameter(weight))
    assert units is not None
    return units


def _begin(trace: Trace, state: Node, units: Ids, path: str) -> None:
    """Zeros have any size; a state from another layer has the same units; any other is the caller's."""
    source = state
    while op_name(source) in LAYOUTS and source.all_input_nodes:
        source = source.all_input_nodes[0]
    if op_name(source) in ZEROS:
        return
    label = trace.dims(state)[-1]
    if isinstance(label, str):
        trace.freeze(units, f"the initial state of {path} is given by the caller")
    else:
        trace.labels.union(label, units)


def _keep(trace: Trace, node: Node, path: str, reason: str) -> list[Dims]:
    """Freeze all that the layer touches; it still costs its weights at every step."""
    a = bind(node)
    source = a["input"] if "input" in a else a["data"]
    for argument in node.all_input_nodes:
        for label in trace.dims(argument):
            trace.freeze(label, reason)
        if argument in trace.tensors and len(shape(argument)) == 2:
            name = trace.tensors[argument]
            trace.weights.setdefault(name)
            trace.producers.setdefault((name, 0), "recurrent")
            steps = math.prod(shape(source)[:-1])
            trace.multiply(
                path, [], [], steps * math.prod(shape(argument)), trace.parameter(argument)
            )
    value = node.meta["val"]
    return [
        [reason] * part.dim() for part in (value if isinstance(value, list | tuple) else [value])
    ]


RULES: dict[str, Rule] = {
    **dict.fromkeys(GATES, layers),
    **dict.fromkeys((f"{name}_cell" for name in GATES), cell),
}
