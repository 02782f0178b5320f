"""The records of trials for tracking.

Every trial has the same columns, so that studies compare in one table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.pruning.structure import Structure
from lightning_modules.recipe import digest
from orchestrator.costs import COSTS, ratio_name
from orchestrator.jobs.shown import five_digits, shown_costs, size_words, study_columns
from orchestrator.search.goals import Goals, goals_of
from orchestrator.search.studies.queue import own_trials
from orchestrator.search.studies.trial import (
    KIND,
    MEASURED,
    REASON,
    RUNGS,
    SECONDS,
    STATE,
    TRACE,
    FrozenTrial,
    Study,
)
from orchestrator.settings import Settings
from orchestrator.tracking import CONFIRMED, ON_FRONT, Point, Tracker, TrialRecord


def record_study(tracker: Tracker, settings: Settings, study: Study) -> None:
    """Open the record before anything expensive.

    So a server that cannot be reached is known at once.
    """
    tags = {
        **study_columns(settings),
        "study_id": study.user_attrs["id"],
        "quality": settings.objectives.quality,
        "data_digest": digest(settings.data),
    }
    tracker.open_study(settings.study.name, tags, settings.plain())


def record_ended(tracker: Tracker, settings: Settings, structure: Structure, study: Study) -> None:
    """Record all ended trials; those that are recorded already are left as they are.

    Some are not: their run was killed, or its disk was full, between the end of the trial and its
    record.
    """
    for trial in own_trials(study):
        if trial.state.is_finished():
            record_trial(tracker, settings, structure, trial)


def record_trial(
    tracker: Tracker, settings: Settings, structure: Structure, trial: FrozenTrial
) -> None:
    """One ended trial: parameters, costs, quality, curves by round, plan and per-group table."""
    known = trial.user_attrs
    measured = known.get(MEASURED, {})
    parent = measured.get("parent")
    completed_at = trial.datetime_complete
    goals = goals_of(settings)
    same = study_columns(settings)
    if measured.get("method"):
        same["method"] = measured["method"]
    tags = {
        **same,
        "origin": known.get(KIND, "search"),
        CONFIRMED: "false",
        ON_FRONT: "false",
    }
    if known.get(REASON):
        tags["reason"] = known[REASON]
    record = TrialRecord(
        number=trial.number,
        state=known[STATE],
        params={**_asked(trial.params), "parent": "dense" if parent is None else parent},
        tags=tags,
        metrics=_metrics(known, goals),
        curves=_curves(known.get(RUNGS, ()), goals.quality),
        artifacts=_artifacts(structure, measured, known.get(TRACE, "")),
        at=None if completed_at is None else completed_at.timestamp(),
        title=_title(trial, same["method"], goals.costs[0]),
    )
    tracker.trial(record)


def _title(trial: FrozenTrial, method: str, axis: str) -> str:
    """Number, method and size: '007 taylor 26% of FLOPs'; the state of one without a size."""
    known = trial.user_attrs
    ratio = known.get(MEASURED, {}).get("ratios", {}).get(axis)
    begin = f"{trial.number:03d} {method}"
    return f"{begin} {known[STATE]}" if ratio is None else f"{begin} {size_words(ratio, axis)}"


def _asked(params: Mapping[str, object]) -> dict[str, object]:
    """What was suggested. A ratio that was asked for is not the one that came out of it."""
    ratios = {ratio_name(cost) for cost in COSTS}
    asked = {}
    for name, value in params.items():
        shown = f"target_{name}" if name in ratios else name
        asked[shown] = five_digits(value) if isinstance(value, float) else value
    return asked


def _metrics(known: Mapping[str, Any], goals: Goals) -> dict[str, float]:
    """Costs against the dense model's, the best quality of all rounds, and the time.

    The last quality is the end of its curve.
    """
    measured = known.get(MEASURED, {})
    rungs = known.get(RUNGS, ())
    metrics = {}
    qualities = [values[goals.quality] for _, _, values in rungs]
    if qualities:
        metrics["best_quality"] = max(qualities) if goals.sign > 0 else min(qualities)
    elif goals.quality in measured.get("metrics", {}):
        metrics["quality"] = measured["metrics"][goals.quality]
    metrics |= shown_costs(measured.get("costs", {}), measured.get("ratios", {}))
    metrics["seconds"] = known[SECONDS]
    return {name: five_digits(value) for name, value in metrics.items()}


def _curves(rungs: Sequence[Any], quality: str) -> list[Point]:
    """The metrics of every rung on validation data; that of the study is its `quality`."""
    points = []
    for rung, _, metrics in rungs:
        for name, value in metrics.items():
            shown = "quality" if name == quality else f"val_{name}"
            points.append(Point(shown, rung, five_digits(value)))
    return points


def _artifacts(structure: Structure, measured: dict[str, Any], trace: str) -> dict[str, str]:
    artifacts = {"traceback.txt": trace} if trace else {}
    if not measured:
        return artifacts
    thresholds: dict[str, float] = {}
    for asked in measured["plan"]["asked"]:
        thresholds |= asked["levels"]
    table = []
    for group in structure.groups:
        kept = measured["kept"][group.name]
        row = {
            "group": group.name,
            "units": group.size,
            "kept": kept,
            "pruning_ratio": 1.0 - kept / group.size,
            "threshold": thresholds.get(group.name, 0.0),
        }
        table.append(row)
    artifacts["plan.json"] = json.dumps(measured["plan"], indent=1)
    artifacts["groups.json"] = json.dumps(table, indent=1)
    return artifacts
