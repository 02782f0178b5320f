"""Bounds that are known before training: what a plan will cost, and whether any plan can keep
them.
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
    """What a plan costs, as far as no training changes it and it is bounded or free to know.

    Sizes and latencies of exported files are not known before there is one, effective FLOPs not
    where activations are pruned.
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
    """Errors: ConfigError for a bound on a cost that neither the smallest plan nor the dense model
    is within.
    """
    structure = prices.structure
    dense = _costs(settings, prices, structure.sizes, model)
    costs = {"smallest": _costs(settings, prices, structure.least, model), "dense": dense}
    values = {which: with_ratios(found, ratios_of(found, dense)) for which, found in costs.items()}
    smallest, largest = values["smallest"], values["dense"]
    for name, bound in settings.objectives.bounds.items():
        if bound.most is not None and smallest.get(name, 0.0) > bound.most:
            raise ConfigError(
                f"objectives.bounds.{name}.most must be at least {four_digits(smallest[name])}, "
                "what the smallest plan has; "
                f"got {four_digits(bound.most)}"
            )
        if bound.least is not None and largest.get(name, float("inf")) < bound.least:
            raise ConfigError(
                f"objectives.bounds.{name}.least must be at most {four_digits(largest[name])}, "
                "what the dense model has; "
                f"got {four_digits(bound.least)}"
            )


def _costs(settings: Settings, prices: Prices, kept: Counts, model: nn.Module) -> dict[str, float]:
    """Costs at the ends of what plans can be; left out where something beside the counts has a
    say.
    """
    methods = settings.method.choices()
    single = all(method.granularity != "unit" for method in methods)
    if single:
        kept = prices.structure.sizes
    by_counts = all(method.granularity == "unit" and method.then is None for method in methods)
    density: Mapping[str, float] | None = (
        {} if by_counts and settings.method.activation is None else None
    )
    bounded = [name for name in SHAPE_COSTS if settings.objectives.bounded(name)]
    if any(settings.method.int8) or not bounded:
        return costs_of(prices, Costed(kept, density))
    shaped = pruned(model, prices.structure, kept).to(prices.example.device)
    return costs_of(prices, Costed(kept, density, shaped=shaped), _with_free(bounded))


def _with_free(bounded: list[str]) -> list[str]:
    """These costs, and all that take no model of the right shapes."""
    return [name for name in COSTS if name not in SHAPE_COSTS or name in bounded]
