"""What tracking is told: the same columns on every trial, so that studies compare in one table."""

from __future__ import annotations

import json
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
    """Repeated on the study and on each of its trials: MLflow's table does not inherit."""
    return {
        "model": settings.model_name(),
        "data": settings.data.target.rpartition(".")[2],
        "method": settings.method.name,
        "criterion": ", ".join(
            method.scoring().target.rpartition(".")[2] for method in settings.method.choices()
        ),
        "seed": str(settings.seed),
    }


def record_study(tracker: Tracker, settings: Settings, study: Study) -> None:
    """Open the record before anything expensive: a server that cannot be reached is known at
    once.
    """
    tracker.open_study(
        settings.study.name,
        {**columns(settings), "study_id": study.user_attrs["id"]},
        settings.plain(),
    )


def record_ended(tracker: Tracker, settings: Settings, structure: Structure, study: Study) -> None:
    """Trials whose run was killed, or its disk full, between the end of the trial and its record;
    others are known.
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
    quality = settings.objectives.quality
    rungs = known.get(RUNGS, ())
    metrics: dict[str, float] = {
        f"val_{name}": value for name, value in measured.get("metrics", {}).items()
    }
    metrics |= {name: float(value) for name, value in measured.get("costs", {}).items()}
    metrics |= {f"{name}_ratio": value for name, value in measured.get("ratios", {}).items()}
    if rungs:
        metrics["quality"] = rungs[-1][2][quality]
    parent = measured.get("parent")
    same = columns(settings) | ({"method": measured["method"]} if measured.get("method") else {})
    record = TrialRecord(
        number=trial.number,
        state=known[STATE],
        params={**trial.params, **same, "parent": "dense" if parent is None else parent},
        tags={**same, "plan_kind": known.get(KIND, "search"), "reason": known.get(REASON, "")},
        metrics={**metrics, "seconds": known[SECONDS], "rung": float(rungs[-1][0] if rungs else 0)},
        curves=[
            Point(f"finetune/{name}", round, value)
            for round, _, found in rungs
            for name, value in found.items()
        ],
        artifacts=_artifacts(structure, measured, known.get(TRACE, "")),
        at=None if trial.datetime_complete is None else trial.datetime_complete.timestamp(),
    )
    tracker.trial(record)


def _artifacts(structure: Structure, measured: dict[str, Any], trace: str) -> dict[str, str]:
    found = {"traceback.txt": trace} if trace else {}
    if measured:
        thresholds: dict[str, float] = {}
        for asked in measured["plan"]["asked"]:
            thresholds |= asked["levels"]
        table = [
            {
                "group": group.name,
                "units": group.size,
                "kept": measured["kept"][group.name],
                "pruning_ratio": 1.0 - measured["kept"][group.name] / group.size,
                "threshold": thresholds.get(group.name, 0.0),
            }
            for group in structure.groups
        ]
        found |= {
            "plan.json": json.dumps(measured["plan"], indent=1),
            "groups.json": json.dumps(table, indent=1),
        }
    return found
