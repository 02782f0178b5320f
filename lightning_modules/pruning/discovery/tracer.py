"""Walks the raw (not decomposed) graph of `torch.export` and labels every axis, op by op."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from lightning_modules.pruning.attention import loosen
from lightning_modules.pruning.discovery import ops_compute, ops_pointwise, ops_recurrent, ops_shape
from lightning_modules.pruning.discovery.labels import Dims
from lightning_modules.pruning.discovery.trace import Rule, Trace, op_name, shape
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import AttentionUnit, Skipped

RULES: dict[str, Rule] = {
    **ops_pointwise.RULES,
    **ops_compute.RULES,
    **ops_recurrent.RULES,
    **ops_shape.RULES,
}
INPUT, OUTPUT = "it is joined with the model's input", "it is the model's output"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Attention takes its readable path; the global random state and that flag are as before afterwards."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def trace_model(model: nn.Module, inputs: Inputs, attention: AttentionUnit = "head") -> Trace:
    """Trace a copy in eval mode at these inputs, of batch 1, then in train mode if some parameters were not reached.

    The second walk only adds ties (auxiliary heads that run in training); costs are those of eval mode.
    Errors: whatever `torch.export` raises.
    """
    twin = copy.deepcopy(model).eval()
    if attention == "head_dim":
        loosen(twin)
    trace = Trace(
        twin, names=canonical_names(twin), transient=_transient(twin), attention=attention
    )
    _walk(trace, _export(twin, inputs))
    unseen = {name for name, _ in twin.named_parameters()} - {name for name, _ in trace.axes}
    if unseen:
        products = list(trace.products)
        trace.values.clear()
        trace.tensors.clear()
        twin.train()
        _walk(
            trace, _export(twin, inputs.twice())
        )  # batch norm refuses to train on one value per channel
        trace.products[:] = products
        trace.trained = True
        twin.eval()
    return trace


def _export(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    with warnings.catch_warnings():
        # What is prunable must not depend on how warnings are set: the exporter warns of its own deprecations.
        warnings.simplefilter("ignore")
        return torch.export.export(model, inputs.args, dict(inputs.kwargs))


def _transient(model: nn.Module) -> frozenset[str]:
    saved = set(model.state_dict().keys())
    return frozenset(name for name, _ in model.named_buffers() if name not in saved)


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer, shared ones included, to the first name of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(tensor), name)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        names[name] = first.setdefault(id(buffer), name)
    return names


def _walk(trace: Trace, program: ExportedProgram) -> None:
    targets = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = targets[node.name]
            if spec.target in trace.names and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                trace.tensors[node] = trace.origins[node] = trace.names[spec.target]
            else:
                reason = (
                    INPUT if spec.kind == InputKind.USER_INPUT else "it meets a constant tensor"
                )
                fixed: Dims = ["", *[reason] * (len(shape(node)) - 1)]
                trace.values[node] = fixed[: len(shape(node))]
        elif node.op == "call_function":
            _call(trace, node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                if source not in trace.tensors:
                    for label in trace.dims(source):
                        trace.freeze(label, OUTPUT)


def _call(trace: Trace, node: Node) -> None:
    if node.target is operator.getitem:
        source, index = node.args
        assert isinstance(source, Node)
        assert isinstance(index, int)
        parts = trace.values.get(source)
        if isinstance(parts, list) and parts and isinstance(parts[index], list):
            trace.values[node] = parts[index]  # type: ignore[assignment]
            if source in trace.origins:
                trace.origins[node] = trace.origins[source]
        return
    rule, trace.path = RULES.get(op_name(node)) or _by_tag(node), trace.owner(node)[0]
    labels = rule(trace, node) if rule is not None else None
    if labels is None:
        _unknown(trace, node)
    else:
        trace.values[node] = labels
        if rule is ops_shape.split and node.args[0] in trace.origins:
            trace.origins[node] = trace.origins[node.args[0]]  # type: ignore[index]


def _by_tag(node: Node) -> Rule | None:
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        return ops_pointwise.pointwise
    return None


def _unknown(trace: Trace, node: Node) -> None:
    """Freeze every axis the op touches and name the op."""
    value = node.meta.get("val")
    if value is None or not any(shape(source) for source in node.all_input_nodes):
        return  # An assertion, or arithmetic on sizes.
    reason = f"it passes through {trace.where(node)}, an op without a rule"
    touched = False
    for source in node.all_input_nodes:
        for label in trace.dims(source):
            touched |= not isinstance(label, str)
            trace.freeze(label, reason)
    if touched:
        trace.notes.setdefault(Skipped(trace.owner(node)[0] or node.name, reason))
    parts = value if isinstance(value, tuple | list) else [value]
    labelled: list[Dims] = [
        [reason] * part.dim() if isinstance(part, Tensor) else [] for part in parts
    ]
    trace.values[node] = labelled if isinstance(value, tuple | list) else labelled[0]
