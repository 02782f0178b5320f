"""The measured costs of a plan: its own, those of its model, and those of its exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from lightning_modules.pruning.plan import Plan, by_group
from lightning_modules.pruning.structure import Counts
from orchestrator.costs import COSTS, ratios_of
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.search.costs import MEASURED_COSTS, SHAPE_COSTS, Costed, costs_of
from orchestrator.search.lab.lab import Lab
from orchestrator.search.plans.measurement import Measurement


def as_exported(
    lab: Lab, measured: Measurement, model: nn.Module, folder: Path, plan: Plan
) -> Measurement:
    """The measurement with quality, size and latency of the exported file.

    The file is written into `folder`.
    """
    if plan.export is None:
        return measured
    form = EXPORT_FORMATS[plan.export]
    path = folder / form.file
    exported = lab.exported(model, form, path, plan.activation)
    kept = np.array(list(measured.kept.values()))
    with lab.timed("evaluation"):
        names = [name for name in SHAPE_COSTS if name in measured.costs]
        costs = costs_of(lab.facts.prices, Costed(kept, shaped=exported, artifact=path), names)
    last = measured.rungs[-1][0] if measured.rungs else 0
    rungs = (*measured.rungs[:-1], (last, lab.validate(exported)))
    return replace(with_costs(measured, costs, lab.facts.dense_costs), rungs=rungs)


def with_costs(
    measured: Measurement, more: Mapping[str, float], dense: Mapping[str, float]
) -> Measurement:
    """The measurement with other costs in place of, or beside, those it has.

    `dense` are the dense model's costs.
    """
    costs = {**measured.costs, **more}
    return replace(measured, costs=costs, ratios=ratios_of(costs, dense))


def measurement(
    lab: Lab,
    plan: Plan,
    kept: Counts,
    density: Mapping[str, float],
    model: nn.Module | None = None,
) -> Measurement:
    """The costs of these units and weights, and of `model` where there is one.

    Nothing is said yet of how the trial went.
    """
    facts = lab.facts
    costed = Costed(kept, density, shaped=model, trained=model)
    names = []
    for name in COSTS:
        if name not in MEASURED_COSTS or facts.goals.uses(name):
            names.append(name)
    with lab.timed("evaluation"):
        costs = costs_of(facts.prices, costed, names)
    return Measurement(
        state="completed",
        parent=plan.parent,
        costs=costs,
        ratios=ratios_of(costs, facts.dense_costs),
        kept=by_group(facts.structure, kept),
        density=dict(density),
        plan=plan.to_json(),
        method=plan.method,
    )
