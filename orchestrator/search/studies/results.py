"""What a study has found so far, as rows: trials, their front, and who is to be confirmed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.results.rows import TrialRow
from orchestrator.search.front import non_dominated, spread_out
from orchestrator.search.goals import Goals
from orchestrator.search.studies.trial import (
    DAMAGED,
    KIND,
    MEASURED,
    REASON,
    RUNGS,
    SECONDS,
    STATE,
    FrozenTrial,
    Study,
)


def trial_row(trial: FrozenTrial, goals: Goals) -> TrialRow:
    """One row of trials.csv."""
    known = trial.user_attrs
    measured = known.get(MEASURED, {})
    rungs = known.get(RUNGS, ())
    last_rung, last_metrics = (rungs[-1][0], rungs[-1][2]) if rungs else (0, {})
    metrics = measured.get("metrics") or last_metrics
    further = {}
    for name in goals.metrics:
        if name in metrics:
            further[name] = metrics[name]
    return TrialRow(
        number=trial.number,
        state=known.get(STATE, "running"),
        rung=last_rung,
        parent=measured.get("parent"),
        quality=metrics.get(goals.quality),
        seconds=known.get(SECONDS, 0.0),
        loss=goals.loss(metrics) if metrics else None,
        kind=known.get(KIND, "search"),
        reason=known.get(REASON, ""),
        method=measured.get("method", ""),
        axis=goals.costs[0],
        costs=dict(measured.get("costs", {})),
        ratios=dict(measured.get("ratios", {})),
        metrics=further,
    )


def rows(study: Study, goals: Goals) -> list[TrialRow]:
    """All trials that have ended, by number.

    Trials whose files were damaged are in the state `damaged`.
    """
    damaged = study.user_attrs.get(DAMAGED, {})
    ended: list[TrialRow] = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        row = trial_row(trial, goals)
        reason = damaged.get(str(row.number))
        if reason is not None:
            row = replace(row, state="damaged", reason=reason)
        ended.append(row)
    return ended


def front(rows: Sequence[TrialRow], goals: Goals, tolerance: float = 0.0) -> list[TrialRow]:
    """Completed trials that no other one dominates in all objectives, the first cost falling.

    They are compared by validation data.
    """
    completed = [
        row for row in rows if row.state == "completed" and row.quality is not None and row.cost
    ]
    kept = non_dominated(goals.points(completed), tolerance)
    chosen = [completed[i] for i in np.flatnonzero(kept)]
    return sorted(chosen, key=lambda row: -row.cost)


def candidates(
    rows: Sequence[TrialRow], goals: Goals, tolerance: float, most: int
) -> list[TrialRow]:
    """At most `most` members of the front, spread over the log of the first cost, large to small.

    Members that share a stretch of the axis are equals within the tolerance. The one with the
    lowest validation loss stands for the others: the loss tells models apart that the quality
    metric does not.
    """
    members = front(rows, goals, tolerance)
    costs = []
    losses = []
    for row in members:
        costs.append(float(row.cost))
        losses.append(math.inf if row.loss is None else row.loss)
    chosen = [members[i] for i in spread_out(costs, most, losses)]
    return sorted(chosen, key=lambda row: -row.cost)
