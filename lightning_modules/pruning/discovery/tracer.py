"""Walks the raw (not decomposed) graph of `torch.export` and labels every axis, op by op."""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from lightning_modules.pruning.attention import loosen
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.discovery import ops_compute, ops_pointwise, ops_recurrent, ops_shape
from lightning_modules.pruning.discovery.labels import Dims
from lightning_modules.pruning.discovery.proof import steps
from lightning_modules.pruning.discovery.trace import OpRule, Trace, op_name, shape
from lightning_modules.pruning.discovery.weights import inherit, kernels
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import AttentionUnit, Skipped

RULES: dict[str, OpRule] = {
    **ops_pointwise.RULES,
    **ops_compute.RULES,
    **ops_recurrent.RULES,
    **ops_shape.RULES,
}
"""Rules by the name of the op."""
PRODUCTS = frozenset(ops_compute.RULES.values())
"""Rules of ops whose result is no parameter in another form."""
INPUT = "it is joined with the model's input"
"""Why an axis that meets the model's input is fixed."""
OUTPUT = "it is the model's output"
"""Why an axis of the model's output is fixed."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside the `with` block attention takes its readable path.

    That flag and the global random state are restored at the end.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def trace_model(model: nn.Module, inputs: Inputs, attention: AttentionUnit = "head") -> Trace:
    """Trace a copy in eval mode at these inputs, of batch 1.

    If some parameters were not reached, a second walk in train mode follows. It only adds ties, as
    of auxiliary heads that run in training; costs are those of eval mode. A forward pass that draws
    its shapes or branches in training does not export: then no tie is added, and the verification
    freezes what breaks in train mode.
    Errors: whatever `torch.export` raises in eval mode.
    """
    twin = copy_of(model).eval()
    if attention == "head_dim":
        loosen(twin)
    names = canonical_names(twin)
    transient = _transient(twin)
    trace = Trace(twin, names=names, transient=transient, attention=attention)
    program = exported_program(twin, inputs)
    _walk(trace, program)
    trace.steps = steps(trace, program.graph)
    parameters = set(dict(twin.named_parameters()))
    reached = {name for name, _ in trace.axes}
    if parameters - reached:
        _walk_in_training(trace, twin, inputs)
    return trace


def _walk_in_training(trace: Trace, twin: nn.Module, inputs: Inputs) -> None:
    trace.trained = True
    twin.train()
    try:
        # batch norm refuses to train on one value per channel, hence two samples
        program = exported_program(twin, inputs.repeated(2))
    except Exception:  # whatever the model's code raises; in eval mode it did export
        return
    finally:
        twin.eval()
    eval_products = list(trace.products)
    trace.values.clear()
    trace.tensors.clear()
    trace.static.clear()
    _walk(trace, program)
    trace.products[:] = eval_products


def exported_program(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The exported program.

    The exporter warns of its own deprecations, and prints the graph of a model that it refuses.
    Both are silenced: what can be pruned must not depend on how warnings are set, and a refusal is
    no fault here.
    """
    logged_from = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), _attributes_kept(model):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            return torch.export.export(model, inputs.args, dict(inputs.kwargs))
        finally:
            logging.disable(logged_from)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Takes back what the forward pass sets on modules, such as anchors for its input's size.

    While a model is exported these are symbols without values, which no later pass can use.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    try:
        yield
    finally:
        for module, before, named in zip(modules, attributes, buffers, strict=True):
            vars(module).clear()
            vars(module).update(before)
            module._buffers.clear()
            module._buffers.update(named)


def _transient(model: nn.Module) -> frozenset[str]:
    """The buffers that are not saved with the model."""
    buffers = dict(model.named_buffers())
    return frozenset(buffers.keys() - model.state_dict().keys())


def canonical_names(model: nn.Module) -> dict[str, str]:
    """From every name of a parameter or buffer, shared ones included, to its tensor's first
    name.
    """
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(tensor), name)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        names[name] = first.setdefault(id(buffer), name)
    return names


def _walk(trace: Trace, program: ExportedProgram) -> None:
    trace.kernels |= kernels(program.graph)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            _placeholder(trace, node, specs[node.name])
        elif node.op == "call_function":
            _call(trace, node)
        elif node.op == "output":
            _output(trace, node)


def _placeholder(trace: Trace, node: Node, spec: Any) -> None:
    """Name a parameter or buffer, and fix the axes of any other input but its batch."""
    if spec.kind != InputKind.USER_INPUT:
        trace.static.add(node)
    if spec.target in trace.names and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        name = trace.names[spec.target]
        trace.tensors[node] = name
        trace.origins[node] = name
        return
    reason = INPUT if spec.kind == InputKind.USER_INPUT else "it meets a constant tensor"
    rank = len(shape(node))
    fixed: Dims = ["", *[reason] * (rank - 1)]
    trace.values[node] = fixed[:rank]


def _output(trace: Trace, node: Node) -> None:
    for source in node.all_input_nodes:
        if source in trace.tensors:
            continue
        for label in trace.dims(source):
            trace.freeze(label, OUTPUT)


def _call(trace: Trace, node: Node) -> None:
    if node.target is operator.getitem:
        _get_item(trace, node)
        return
    rule = RULES.get(op_name(node)) or _by_tag(node)
    trace.path = trace.owner(node)[0]
    labels = rule(trace, node) if rule is not None else None
    if labels is None:
        _unknown(trace, node)
        return
    trace.values[node] = labels
    source = node.args[0] if rule is ops_shape.split else None
    if isinstance(source, Node) and source in trace.origins:
        trace.origins[node] = trace.origins[source]
    inherit(trace, node, multiplies=rule in PRODUCTS)


def _get_item(trace: Trace, node: Node) -> None:
    """One of the tensors that an op returns."""
    source, index = node.args
    if source in trace.static:
        trace.static.add(node)
    assert isinstance(source, Node)
    assert isinstance(index, int)
    parts = trace.values.get(source)
    if isinstance(parts, list) and parts and isinstance(parts[index], list):
        trace.values[node] = parts[index]  # type: ignore[assignment]
        if source in trace.origins:
            trace.origins[node] = trace.origins[source]


def _by_tag(node: Node) -> OpRule | None:
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        return ops_pointwise.pointwise
    return None


def _unknown(trace: Trace, node: Node) -> None:
    """Freeze every axis that an op without a rule touches, and name the op."""
    value = node.meta.get("val")
    if value is None or not any(map(shape, node.all_input_nodes)):
        return  # an assertion, or arithmetic on sizes
    reason = f"it passes through {trace.where(node)}, an op without a rule"
    touched = False
    for source in node.all_input_nodes:
        for label in trace.dims(source):
            touched |= not isinstance(label, str)
            trace.freeze(label, reason)
    if touched:
        trace.notes.setdefault(Skipped(trace.layer(node), reason))
    if isinstance(value, tuple | list):
        trace.values[node] = [_fixed(part, reason) for part in value]
    else:
        trace.values[node] = _fixed(value, reason)


def _fixed(value: object, reason: str) -> Dims:
    """The labels of a tensor that is fixed along all axes."""
    return [reason] * value.dim() if isinstance(value, Tensor) else []
