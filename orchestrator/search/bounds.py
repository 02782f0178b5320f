"""Bounds that are known before training.

That is: what a plan will cost, and whether any plan can keep the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Counts
from orchestrator.costs import COSTS, ratios_of, with_ratios
from orchestrator.search.costs import SHAPE_COSTS, Costed, Prices, costs_of
from orchestrator.search.lab.lab import Lab
from orchestrator.search.lab.latency_model import pruned
from orchestrator.settings import Settings
from orchestrator.settings.objectives import four_digits


def costs_before(lab: Lab, plan: Plan) -> dict[str, float]:
    """Costs of a plan that no training changes and that are bounded or free to know.

    Sizes and latencies of exported files are not known before there is a file. Effective FLOPs are
    not known where activations are pruned.
    """
    facts = lab.facts
    kept = plan.counts(facts.structure)
    density = plan.density if plan.activation is None else None
    bounded = [name for name in SHAPE_COSTS if facts.goals.bounded(name)]
    if plan.export or not bounded:
        return costs_of(facts.prices, Costed(kept, density))
    with lab.timed("evaluation"):
        model = pruned(facts.model, facts.structure, kept).to(lab.device)
        return costs_of(facts.prices, Costed(kept, density, shaped=model), _with_free(bounded))


def check_bounds(settings: Settings, prices: Prices, model: nn.Module) -> None:
    """Checks each bound against the costs of the smallest plan and of the dense model.

    Errors: ConfigError for a bound that neither of them keeps.
    """
    structure = prices.structure
    dense_costs = _costs(settings, prices, structure.sizes, model)
    least_costs = _costs(settings, prices, structure.least, model)
    dense = with_ratios(dense_costs, ratios_of(dense_costs, dense_costs))
    smallest = with_ratios(least_costs, ratios_of(least_costs, dense_costs))
    for name, bound in settings.objectives.bounds.items():
        if bound.most is not None and smallest.get(name, 0.0) > bound.most:
            raise ConfigError(
                f"objectives.bounds.{name}.most must be at least {four_digits(smallest[name])}, "
                f"what the smallest plan has; got {four_digits(bound.most)}"
            )
        if bound.least is not None and dense.get(name, float("inf")) < bound.least:
            raise ConfigError(
                f"objectives.bounds.{name}.least must be at most {four_digits(dense[name])}, "
                f"what the dense model has; got {four_digits(bound.least)}"
            )


def _costs(settings: Settings, prices: Prices, kept: Counts, model: nn.Module) -> dict[str, float]:
    """Costs of the smallest or of the largest possible plan, whose units are `kept`.

    Costs that depend on more than the counts are left out.
    """
    removes_units = False
    by_counts = settings.method.activation is None
    for method in settings.method.choices():
        if method.granularity == "unit":
            removes_units = True
        if method.granularity != "unit" or method.then is not None:
            by_counts = False
    if not removes_units:
        kept = prices.structure.sizes
    density: Mapping[str, float] | None = {} if by_counts else None
    bounded = [name for name in SHAPE_COSTS if settings.objectives.bounded(name)]
    if any(settings.method.int8) or not bounded:
        return costs_of(prices, Costed(kept, density))
    shaped = pruned(model, prices.structure, kept).to(prices.example.device)
    return costs_of(prices, Costed(kept, density, shaped=shaped), _with_free(bounded))


def _with_free(bounded: list[str]) -> list[str]:
    """These costs, and all that need no model of the right shapes."""
    return [name for name in COSTS if name not in SHAPE_COSTS or name in bounded]
