"""What a study has found so far, as rows: trials, their front, and who is to be confirmed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.report.rows import TrialRow
from orchestrator.search.front import non_dominated, spread_out
from orchestrator.search.study import KIND, MEASURED, REASON, RUNGS, SECONDS, STATE, FrozenTrial, Study


def trial_row(trial: FrozenTrial, quality: str, axis: str = "flops") -> TrialRow:
    """One row of trials.csv; `quality` is the metric's name, `axis` the cost the front is laid out along."""
    known = trial.user_attrs
    measured = known.get(MEASURED, {})
    rungs = known.get(RUNGS, ())
    costs, ratios = measured.get("costs", {}), measured.get("ratios", {})
    metrics = measured.get("metrics") or (rungs[-1][2] if rungs else {})
    return TrialRow(
        number=trial.number,
        state=known.get(STATE, "running"),
        rung=rungs[-1][0] if rungs else 0,
        parent=measured.get("parent"),
        quality=metrics.get(quality),
        flops=int(costs["flops"]) if costs else None,
        flops_ratio=ratios.get("flops"),
        params=int(costs["params"]) if costs else None,
        params_ratio=ratios.get("params"),
        seconds=known.get(SECONDS, 0.0),
        loss=metrics.get("loss"),
        kind=known.get(KIND, "search"),
        reason=known.get(REASON, ""),
        method=measured.get("method", ""),
        effective_flops=int(costs["effective_flops"]) if "effective_flops" in costs else None,
        effective_flops_ratio=ratios.get("effective_flops"),
        axis=axis,
    )


def rows(study: Study, quality: str, axis: str = "flops") -> list[TrialRow]:
    """All trials that have ended, by number."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return [trial_row(trial, quality, axis) for trial in ended]


def front(found: Sequence[TrialRow], sign: float, tolerance: float = 0.0) -> list[TrialRow]:
    """Completed trials that no other dominates in (quality, cost on the axis) on validation data, large to small."""
    completed = [row for row in found if row.state == "completed" and row.quality is not None and row.cost]
    points = np.array([[sign * row.quality, row.cost] for row in completed]).reshape(-1, 2)  # type: ignore[operator]
    kept = non_dominated(points, tolerance)
    chosen = [row for row, keep in zip(completed, kept, strict=True) if keep]
    return sorted(chosen, key=lambda row: -row.cost)


def candidates(found: Sequence[TrialRow], sign: float, tolerance: float, most: int) -> list[TrialRow]:
    """At most `most` members of the front, spread over the log of the cost, large to small.

    Members that share a stretch of the axis are equals within the tolerance: the one with the lowest validation loss,
    which tells models apart that the quality metric does not, stands for the others.
    """
    members = front(found, sign, tolerance)
    chosen = spread_out(
        [float(row.cost) for row in members],
        most,
        [math.inf if row.loss is None else row.loss for row in members],
    )
    return sorted((members[i] for i in chosen), key=lambda row: -row.cost)
