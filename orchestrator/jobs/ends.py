"""The end of a study for tracking.

A study that is complete needs nothing else of tracking.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.jobs.outputs import Outputs
from orchestrator.search.studies.rungs import rung_columns
from orchestrator.settings import Settings
from orchestrator.tracking import Tracker
from orchestrator.tracking.spooled import Spooled, spooled


def tracker_of(settings: Settings) -> Tracker:
    """The tracker of the configuration.

    Its records are kept in the study's folder until they are sent.
    """
    return spooled(
        settings.tracking.build(), settings.study.folder / "spool", settings.tracking.to_json()
    )


def end_of(outputs: Outputs) -> tuple[dict[str, float], list[Path]]:
    """Metrics and files of a finished study."""
    metrics: dict[str, float] = {}
    for name, value in outputs.summary.items():
        if isinstance(value, int | float):
            metrics[name] = value
    for name, value in outputs.summary["reference"].items():
        metrics[f"reference_{name}"] = value
    metrics |= rung_columns(outputs.rungs())
    return metrics, outputs.files()


def record_end(tracker: Tracker, outputs: Outputs) -> None:
    """Record what a finished study could not send.

    That includes its end, where the run was killed before it was recorded.
    """
    if isinstance(tracker, Spooled):
        tracker.require_end(*end_of(outputs))
