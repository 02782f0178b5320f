"""What a study has found so far, as rows: trials, their front, and who is to be confirmed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

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
    metrics = measured.get("metrics") or (rungs[-1][2] if rungs else {})
    return TrialRow(
        number=trial.number,
        state=known.get(STATE, "running"),
        rung=rungs[-1][0] if rungs else 0,
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
        metrics={name: metrics[name] for name in goals.metrics if name in metrics},
    )


def rows(study: Study, goals: Goals) -> list[TrialRow]:
    """All trials that have ended, by number; those whose files were damaged are in the state of
    that name.
    """
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    damaged = study.user_attrs.get(DAMAGED, {})
    found = [trial_row(trial, goals) for trial in ended]
    return [
        replace(row, state="damaged", reason=damaged[str(row.number)])
        if str(row.number) in damaged
        else row
        for row in found
    ]


def front(found: Sequence[TrialRow], goals: Goals, tolerance: float = 0.0) -> list[TrialRow]:
    """Completed trials that none dominates in all objectives together, by validation data; the
    first cost falls.
    """
    completed = [
        row for row in found if row.state == "completed" and row.quality is not None and row.cost
    ]
    kept = non_dominated(goals.points(completed), tolerance)
    chosen = [row for row, keep in zip(completed, kept, strict=True) if keep]
    return sorted(chosen, key=lambda row: -row.cost)


def candidates(
    found: Sequence[TrialRow], goals: Goals, tolerance: float, most: int
) -> list[TrialRow]:
    """At most `most` members of the front, spread over the log of the first cost, large to small.

    Members that share a stretch of the axis are equals within the tolerance: the one with the
    lowest validation loss, which tells models apart that the quality metric does not, stands for
    the others.
    """
    members = front(found, goals, tolerance)
    chosen = spread_out(
        [float(row.cost) for row in members],
        most,
        [math.inf if row.loss is None else row.loss for row in members],
    )
    return sorted((members[i] for i in chosen), key=lambda row: -row.cost)
