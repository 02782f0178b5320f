"""What is measured of a plan: its costs, those of its model, and those of the model as int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.phases.latency import latency_ms
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Counts
from orchestrator.search.bounds import size_mb
from orchestrator.search.plans.finished import Finished
from orchestrator.search.plans.measurement import Measurement, Rung
from orchestrator.search.problem import Problem, example_input


@dataclass(frozen=True)
class Wanted:
    """What a proposal comes to: units per group of the dense model, and the share of weights each tensor keeps."""

    kept: Counts
    density: Mapping[str, float]


def by_group(problem: Problem, kept: Counts) -> dict[str, int]:
    names = [group.name for group in problem.structure.groups]
    return dict(zip(names, np.asarray(kept).tolist(), strict=True))


def quantised(problem: Problem, measured: Measurement, model: nn.Module, path: Path, plan: Plan) -> Measurement:
    """The measurement with quality, size and latency of the int8 model, which is written to `path`."""
    small = problem.quantised(model, path, plan.activation)
    unit = measured.rungs[-1][0] if measured.rungs else 0
    costs = {**measured.costs, "size_mb": path.stat().st_size / 1e6}
    if "latency_ms" in costs:
        with problem.timed("evaluation"):
            costs["latency_ms"] = latency_ms(small, example_input(problem.data))
    rungs = (*measured.rungs[:-1], (unit, problem.validate(small)))
    return replace(measured, costs=costs, rungs=rungs)


def measurement(
    problem: Problem,
    state: Any,
    parent: Finished | None,
    wanted: Wanted,
    plan: Plan,
    rungs: tuple[Rung, ...] = (),
    reason: str = "",
    model: nn.Module | None = None,
    units: int = 0,
) -> Measurement:
    """The costs of `wanted`, and of `model` where there is one, with how the trial ended."""
    kept = wanted.kept
    ratios = problem.ratios(kept, wanted.density)
    costs = {
        "flops": 2.0 * problem.cost.macs(kept),
        "effective_flops": 2.0 * round(ratios["effective_flops"] * problem.dense_macs),
        "params": float(problem.cost.params(kept)),
    }
    if model is not None:
        costs["size_mb"] = size_mb(model)
        costs["nonzero_params"] = float(sum(int((p != 0).sum()) for p in model.parameters()))
    if problem.latency is not None:
        costs["estimated_latency_ms"] = problem.latency(kept)
    if model is not None and problem.settings.objectives.uses("latency_ms"):
        with problem.timed("evaluation"):
            costs["latency_ms"] = latency_ms(model, example_input(problem.data).to(problem.device))
    return Measurement(
        state=state,
        parent=None if parent is None else parent.number,
        costs=costs,
        ratios=ratios,
        kept=by_group(problem, kept),
        density=dict(wanted.density),
        rungs=rungs,
        reason=reason,
        plan=plan.to_json(),
        method=plan.stages[0].method["name"],
        trained_units=units,
    )
