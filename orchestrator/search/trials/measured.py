"""What is measured of a plan: its costs, those of its model, and those of the model as int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Counts
from orchestrator.costs import COSTS, ratios_of
from orchestrator.search.costs import MEASURED, SHAPED, Costed, costs_of
from orchestrator.search.lab.problem import Problem
from orchestrator.search.plans.finished import Finished
from orchestrator.search.plans.measurement import Measurement, Rung


@dataclass(frozen=True)
class Wanted:
    """What a proposal comes to: units per group of the dense model, and the share of weights each tensor keeps."""

    kept: Counts
    density: Mapping[str, float]


def by_group(problem: Problem, kept: Counts) -> dict[str, int]:
    names = [group.name for group in problem.structure.groups]
    return dict(zip(names, np.asarray(kept).tolist(), strict=True))


def quantised(
    problem: Problem, measured: Measurement, model: nn.Module, path: Path, plan: Plan
) -> Measurement:
    """The measurement with quality, size and latency of the int8 model, which is written to `path`."""
    small = problem.quantised(model, path, plan.activation)
    round = measured.rungs[-1][0] if measured.rungs else 0
    kept = np.array(list(measured.kept.values()))
    with problem.timed("evaluation"):
        names = [name for name in SHAPED if name in measured.costs]
        costs = costs_of(problem.prices, Costed(kept, shaped=small, artifact=path), names)
    rungs = (*measured.rungs[:-1], (round, problem.validate(small)))
    return replace(with_costs(measured, costs, problem.dense_costs), rungs=rungs)


def with_costs(
    measured: Measurement, more: Mapping[str, float], dense: Mapping[str, float]
) -> Measurement:
    """The measurement with other costs in place of, or beside, those it has; `dense` are the dense model's."""
    costs = {**measured.costs, **more}
    return replace(measured, costs=costs, ratios=ratios_of(costs, dense))


def measurement(
    problem: Problem,
    state: Any,
    parent: Finished | None,
    wanted: Wanted,
    plan: Plan,
    rungs: tuple[Rung, ...] = (),
    reason: str = "",
    model: nn.Module | None = None,
    rounds: int = 0,
) -> Measurement:
    """The costs of `wanted`, and of `model` where there is one, with how the trial ended."""
    costed = Costed(wanted.kept, wanted.density, shaped=model, trained=model)
    names = [
        name for name in COSTS if name not in MEASURED or problem.settings.objectives.uses(name)
    ]
    with problem.timed("evaluation"):
        costs = costs_of(problem.prices, costed, names)
    return Measurement(
        state=state,
        parent=None if parent is None else parent.number,
        costs=costs,
        ratios=ratios_of(costs, problem.dense_costs),
        kept=by_group(problem, wanted.kept),
        density=dict(wanted.density),
        rungs=rungs,
        reason=reason,
        plan=plan.to_json(),
        method=plan.stages[0].method["name"],
        trained_rounds=rounds,
    )
