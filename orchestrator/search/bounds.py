"""Bounds that are known before training: what a plan will cost, and whether any plan can keep them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.phases.latency import latency_ms
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.structure import Counts, Structure
from orchestrator.search.latency_model import LatencyModel, pruned
from orchestrator.search.problem import Problem, example_input
from orchestrator.settings import Settings
from orchestrator.settings.objectives import digits

SHAPED = ("size_mb", "latency_ms")
"""Costs of a model in floating point that follow from its shapes: an untrained one tells them."""


def size_mb(model: nn.Module) -> float:
    """Megabytes of all tensors of a model."""
    return sum(float(t.numel() * t.element_size()) for t in model.state_dict().values()) / 1e6


def shaped(model: nn.Module, example: Tensor, names: Iterable[str]) -> dict[str, float]:
    """Those of `SHAPED` that are among `names`."""
    tell = {"size_mb": lambda: size_mb(model), "latency_ms": lambda: latency_ms(model, example)}
    return {name: tell[name]() for name in SHAPED if name in names}


def costs_before(
    problem: Problem, kept: Counts, density: Mapping[str, float], level: float | None, int8: bool
) -> dict[str, float]:
    """What a plan costs, as far as no training changes it and it is bounded or free to know.

    Sizes and latencies of quantised models are not known before there is one, effective FLOPs not where activations are
    pruned; the latter's `level` is None where they are not.
    """
    settings = problem.settings
    found = {"flops": 2.0 * problem.cost.macs(kept), "params": float(problem.cost.params(kept))}
    if level is None:
        ratio = problem.ratios(kept, density)["effective_flops"]
        found["effective_flops"] = 2.0 * round(ratio * problem.dense_macs)
    if problem.latency is not None:
        found["estimated_latency_ms"] = problem.latency(kept)
    names = [name for name in SHAPED if name in settings.objectives.bounds]
    if names and not int8:
        with problem.timed("evaluation"):
            model = pruned(problem.model, problem.structure, kept)
            found |= shaped(model, example_input(problem.data).to(problem.device), names)
    return found


def check_bounds(
    settings: Settings, structure: Structure, model: nn.Module, example: Tensor, latency: LatencyModel | None
) -> None:
    """Errors: ConfigError for a bound on a cost that neither the smallest plan nor the dense model is within."""
    bounds = settings.objectives.bounds
    smallest = _costs(settings, structure, structure.least, model, example, latency)
    largest = _costs(settings, structure, structure.sizes, model, example, latency)
    for name, bound in bounds.items():
        if bound.most is not None and smallest.get(name, 0.0) > bound.most:
            raise ConfigError(
                f"objectives.bounds.{name}.most must be at least {digits(smallest[name])}, what the smallest plan has; "
                f"got {digits(bound.most)}"
            )
        if bound.least is not None and largest.get(name, float("inf")) < bound.least:
            raise ConfigError(
                f"objectives.bounds.{name}.least must be at most {digits(largest[name])}, what the dense model has; "
                f"got {digits(bound.least)}"
            )


def _costs(
    settings: Settings,
    structure: Structure,
    kept: Counts,
    model: nn.Module,
    example: Tensor,
    latency: LatencyModel | None,
) -> dict[str, float]:
    """Costs at the ends of what plans can be; left out where something beside the counts has a say."""
    methods = settings.method.choices()
    if all(method.granularity != "unit" for method in methods):
        kept = structure.sizes
    cost = Cost(structure)
    found = {"flops": 2.0 * cost.macs(kept), "params": float(cost.params(kept))}
    if latency is not None:
        found["estimated_latency_ms"] = latency(kept)
    names = [name for name in SHAPED if name in settings.objectives.bounds]
    if names and not any(settings.method.int8):
        found |= shaped(pruned(model, structure, kept).to(example.device), example, names)
    return found
