"""Rules for LSTM, GRU and plain recurrent layers: a unit is one index of the hidden state.

One `hidden_size` serves every layer and direction of a module, so index j is the same unit in all
of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from lightning_modules.pruning.discovery.labels import Dims, Ids, Label
from lightning_modules.pruning.discovery.trace import LAYOUTS, OpRule, Trace, bind, op_name, shape

GATES_BY_OP = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Rows of a weight per hidden unit, by the name of the op."""
ZEROS = frozenset(("zeros", "zeros_like", "new_zeros"))
"""Ops that give an initial state of zeros."""


def layers(trace: Trace, node: Node) -> list[Dims]:
    """All layers and directions of one module.

    Inputs have the shape (time, batch, width) or (batch, time, width).
    """
    a = bind(node)
    path = trace.layer(node)
    directions = 1 + a["bidirectional"]
    per_cell = 4 if a["has_biases"] else 2
    reason = _why_whole(trace, a["params"], path)
    if "input" not in a:
        reason = f"the recurrent layer {path} reads a packed sequence"
    elif len(a["params"]) != a["num_layers"] * directions * per_cell:
        reason = f"the recurrent layer {path} projects its hidden state (proj_size)"
    if reason is not None:
        return _freeze_all(trace, node, path, reason)
    x = trace.dims(a["input"])
    steps = math.prod(shape(a["input"])[:-1])
    time_dim = int(a["batch_first"])
    trace.freeze(x[time_dim], f"recurred over at {trace.where(node)}")
    units: Ids | None = None
    for first in range(0, len(a["params"]), per_cell):
        below = x[-1]
        if units is not None and first >= directions * per_cell:
            below = np.tile(units, directions)
        weights = a["params"][first : first + per_cell]
        units = _tie_cell(trace, node, weights, below, units, steps)
    assert units is not None
    states = _states(a)
    for state in states:
        _tie_state(trace, state, units, path)
    outputs: Dims = [x[0], x[1], np.tile(units, directions)]
    return [outputs, *[["", x[1 - time_dim], units] for _ in states]]


def cell(trace: Trace, node: Node) -> Dims | list[Dims]:
    """One step of LSTMCell, GRUCell or RNNCell, with input of shape (batch, width)."""
    a = bind(node)
    path = trace.layer(node)
    weights = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if a[name] is not None]
    states = _states(a)
    reason = _why_whole(trace, weights, path)
    x = trace.dims(a["input"])
    if reason is not None:
        out = _freeze_all(trace, node, path, reason)
    else:
        steps = math.prod(shape(a["input"])[:-1])
        units = _tie_cell(trace, node, weights, x[-1], None, steps)
        for state in states:
            _tie_state(trace, state, units, path)
        out = [[*x[:-1], units] for _ in states]
    return out if len(states) > 1 else out[0]


def _states(a: dict[str, Any]) -> Sequence[Node]:
    """The initial states: an LSTM has two, other layers one."""
    states = a["hx"]
    return states if isinstance(states, list | tuple) else [states]


def _why_whole(trace: Trace, weights: Sequence[Node], path: str) -> str | None:
    """Why these weights cannot be cut; None if they can."""
    if not all(weight in trace.tensors for weight in weights):
        return f"the recurrent layer {path} has weights that are not parameters"
    if shape(weights[1])[1] == 1:
        return f"the recurrent layer {path} has one hidden unit"
    return None


def _tie_cell(
    trace: Trace, node: Node, weights: Sequence[Node], below: Label, units: Ids | None, steps: int
) -> Ids:
    """Tie one layer and direction, and return its units.

    The rows of every gate are its units. The columns are those of the layer `below` and of its own
    past.
    """
    gates = GATES_BY_OP[op_name(node).removesuffix("_cell")]
    path = trace.layer(node)
    for slot, weight in enumerate(weights):
        dims = trace.dims(weight)
        name = trace.tensors[weight]
        rows = dims[0]
        assert not isinstance(rows, str)
        by_gate = rows.reshape(gates, -1)
        units = by_gate[0] if units is None else units
        trace.labels.union(by_gate, units)
        if slot < 2:  # the biases follow
            columns = below if slot == 0 else units
            dims[1] = trace.join(dims[1], columns, trace.where(node))
            trace.weights.setdefault(name)
            trace.producers.setdefault((name, 0), "recurrent")
            trace.consumers.add((name, 1))
            trace.multiply(path, shape(weight), dims, steps, trace.parameter(weight))
    assert units is not None
    return units


def _tie_state(trace: Trace, state: Node, units: Ids, path: str) -> None:
    """Tie an initial state to the units.

    Zeros have any size; a state from another layer has the same units; any other one is the
    caller's, which fixes the units.
    """
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


def _freeze_all(trace: Trace, node: Node, path: str, reason: str) -> list[Dims]:
    """Freeze all that the layer touches. It still costs its weights at every step."""
    a = bind(node)
    source = a["input"] if "input" in a else a["data"]
    steps = math.prod(shape(source)[:-1])
    for argument in node.all_input_nodes:
        for label in trace.dims(argument):
            trace.freeze(label, reason)
        if argument in trace.tensors and len(shape(argument)) == 2:
            name = trace.tensors[argument]
            trace.weights.setdefault(name)
            trace.producers.setdefault((name, 0), "recurrent")
            macs = steps * math.prod(shape(argument))
            trace.multiply(path, [], [], macs, trace.parameter(argument))
    value = node.meta["val"]
    parts = value if isinstance(value, list | tuple) else [value]
    return [[reason] * part.dim() for part in parts]


RULES: dict[str, OpRule] = {
    **dict.fromkeys(GATES_BY_OP, layers),
    **dict.fromkeys((f"{name}_cell" for name in GATES_BY_OP), cell),
}
"""Rules by the name of the op."""
