"""The records of trials for tracking.

Every trial has the same columns, so that studies compare in one table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.pruning.structure import Structure
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
from orchestrator.tracking import Point, Tracker, TrialRecord


def columns(settings: Settings) -> dict[str, str]:
    """Columns of the study and of each of its trials: MLflow's table does not inherit them."""
    criteria = []
    for method in settings.method.choices():
        criteria.append(method.scoring().target.rpartition(".")[2])
    return {
        "model": settings.model_name(),
        "data": settings.data.target.rpartition(".")[2],
        "method": settings.method.name,
        "criterion": ", ".join(criteria),
        "seed": str(settings.seed),
    }


def record_study(tracker: Tracker, settings: Settings, study: Study) -> None:
    """Open the record before anything expensive.

    So a server that cannot be reached is known at once.
    """
    tags = {**columns(settings), "study_id": study.user_attrs["id"]}
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
    same = columns(settings)
    if measured.get("method"):
        same["method"] = measured["method"]
    record = TrialRecord(
        number=trial.number,
        state=known[STATE],
        params={**trial.params, **same, "parent": "dense" if parent is None else parent},
        tags={**same, "plan_kind": known.get(KIND, "search"), "reason": known.get(REASON, "")},
        metrics=_metrics(known, settings.objectives.quality),
        curves=_curves(known.get(RUNGS, ())),
        artifacts=_artifacts(structure, measured, known.get(TRACE, "")),
        at=None if completed_at is None else completed_at.timestamp(),
    )
    tracker.trial(record)


def _metrics(known: Mapping[str, Any], quality: str) -> dict[str, float]:
    """Metrics, costs and ratios of a trial by the names of their columns."""
    measured = known.get(MEASURED, {})
    rungs = known.get(RUNGS, ())
    metrics: dict[str, float] = {}
    for name, value in measured.get("metrics", {}).items():
        metrics[f"val_{name}"] = value
    for name, value in measured.get("costs", {}).items():
        metrics[name] = float(value)
    for name, value in measured.get("ratios", {}).items():
        metrics[f"{name}_ratio"] = value
    if rungs:
        metrics["quality"] = rungs[-1][2][quality]
    metrics["seconds"] = known[SECONDS]
    metrics["rung"] = float(rungs[-1][0] if rungs else 0)
    return metrics


def _curves(rungs: Sequence[Any]) -> list[Point]:
    """The metrics of every rung."""
    points = []
    for rung, _, metrics in rungs:
        for name, value in metrics.items():
            points.append(Point(f"finetune/{name}", rung, value))
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
