"""Finds what can be pruned in a model: `discover`."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_modules.pruning.discovery.assemble import assemble
from lightning_modules.pruning.discovery.tracer import trace_model, undisturbed
from lightning_modules.pruning.structure import Structure

__all__ = ["discover"]


def discover(
    model: nn.Module, example_inputs: tuple[Tensor, ...], seconds: float = 30.0, memory_gb: float = 4.0
) -> Structure:
    with undisturbed():
        trace = trace_model(model, example_inputs)
        return assemble(trace)
