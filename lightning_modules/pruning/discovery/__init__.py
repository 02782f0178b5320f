"""Discovers what can be pruned in a model: `discover`."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_modules.errors import DiscoveryError
from lightning_modules.pruning.discovery.counted import complete
from lightning_modules.pruning.discovery.fallback import dependency_trace
from lightning_modules.pruning.discovery.limits import limited
from lightning_modules.pruning.discovery.trace import Trace
from lightning_modules.pruning.discovery.tracer import trace_model, undisturbed
from lightning_modules.pruning.discovery.verify import verify
from lightning_modules.pruning.inputs import Inputs, as_inputs
from lightning_modules.pruning.structure import AttentionUnit, Structure

__all__ = ["discover"]


def discover(
    model: nn.Module,
    example_inputs: Inputs | tuple[Any, ...],
    seconds: float = 30.0,
    memory_gb: float = 4.0,
    attention: AttentionUnit = "head",
    depth: bool = False,
) -> Structure:
    """Every group of units that can be removed from `model`; each has been tried.

    The shapes are those of `example_inputs`, with the batch first. `attention` says what is removed
    from attention modules: whole heads, or width of every head. `depth` adds whole residual blocks,
    after all other groups. It works on copies: the model, its flags and the global random state
    stay as they are. Models that `torch.export` refuses go through torch-pruning's graph; `source`
    says which of the two it was.
    Errors: DiscoveryError if neither works, or beyond `seconds` or `memory_gb` of growth.
    """
    with undisturbed():
        inputs = as_inputs(example_inputs).first()
        return limited(lambda: _discover(model, inputs, attention, depth), seconds, memory_gb)


def _discover(model: nn.Module, inputs: Inputs, attention: AttentionUnit, depth: bool) -> Structure:
    try:
        trace = trace_model(model, inputs, attention)
        complete(trace, inputs)
    except Exception as error:  # whatever the model's code and torch's own internals raise
        trace = _fallback(model, inputs, error)
    return verify(trace, inputs, depth)


def _fallback(model: nn.Module, inputs: Inputs, export_error: Exception) -> Trace:
    try:
        return dependency_trace(model, inputs)
    except Exception as graph_error:
        raise DiscoveryError(
            "a model must export with torch.export or trace with torch-pruning; neither works. "
            f"torch.export: {_short(export_error)}. torch-pruning: {_short(graph_error)}. Remove "
            "data-dependent Python branches from forward, or pass a submodule without them"
        ) from graph_error


def _short(error: Exception) -> str:
    """The type and the first line of an error, cut to 200 characters."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"
