"""The volume of the front over the trials: whether the search was still finding better models."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.report import colours
from orchestrator.report.sections.parts import Chart, Line, Record, SectionPart, picked_param
from orchestrator.report.view import StudyView
from orchestrator.results.quantities import axis_words, percent
from orchestrator.results.rows import TrialRow
from orchestrator.search.front import LEAST_RATIO, hypervolume

LATE = 0.25
"""Last part of the trials, of which is said how much it added."""


@dataclass(frozen=True)
class _Step:
    """The front's volume when a trial had ended, and whether the trial raised it."""

    number: int
    volume: float
    raised: bool


def volume_parts(view: StudyView) -> list[SectionPart]:
    """A line of words and the chart; nothing for fewer than two completed trials."""
    steps = _steps(view)
    if len(steps) < 2:
        return []
    return [Line(_in_words(view, steps)), Chart("volume", _spec(view, steps))]


def _steps(view: StudyView) -> list[_Step]:
    """The volume after each completed trial, by number, on validation data."""
    trials = [row for row in view.rows.trials if _counts(row)]
    reference, least = _reference(view, trials)
    steps: list[_Step] = []
    qualities: list[float] = []
    ratios: list[float] = []
    before = 0.0
    for row in sorted(trials, key=lambda row: row.number):
        qualities.append(view.sign * float(row.quality or 0.0))
        ratios.append(row.cost_ratio)
        volume = hypervolume(qualities, ratios, reference, least)
        raised = volume > before + 1e-9
        steps.append(_Step(row.number, volume, raised))
        before = volume
        if not raised:
            # it never will: others dominate it
            qualities.pop()
            ratios.pop()
    return steps


def _counts(row: TrialRow) -> bool:
    good = row.quality is not None and math.isfinite(row.quality)
    return row.state == "completed" and good and row.cost_ratio > 0.0


def _reference(view: StudyView, trials: list[TrialRow]) -> tuple[float, float]:
    """The quality from which the volume counts, large is good, and the least share of the cost."""
    stored = view.summary.get("reference", {})
    least = float(stored.get("least_ratio", LEAST_RATIO))
    if view.quality in stored:
        return view.sign * float(stored[view.quality]), least
    qualities = [view.sign * float(row.quality or 0.0) for row in trials]
    return min(qualities, default=0.0), least


def _in_words(view: StudyView, steps: list[_Step]) -> str:
    last = [step.number for step in steps if step.raised][-1:]
    if not last:
        return "No trial was better than the reference quality, so the front has no volume."
    early = steps[max(0, math.floor(len(steps) * (1.0 - LATE)) - 1)]
    gain = 1.0 - early.volume / steps[-1].volume
    return (
        f"The volume of the front on validation data, in {view.quality} over the log of the "
        f"{axis_words(view.rows.axis)}, rose last with trial {last[0]}. The last quarter of the "
        f"completed trials added {percent(gain)} of it."
    )


def _spec(view: StudyView, steps: list[_Step]) -> Record:
    records = []
    for step in steps:
        record: Record = {
            "trial": str(step.number),
            "number": step.number,
            "volume": round(step.volume, 5),
            "raised": step.raised,
        }
        records.append(record)
    return {
        "description": (
            f"Line: the hypervolume of the front of the study {view.name} after each of "
            f"{len(steps)} completed trials."
        ),
        "width": "container",
        "height": 180,
        "data": {"values": records},
        "params": [picked_param()],
        "encoding": {
            "x": {
                "field": "number",
                "type": "quantitative",
                "title": "trial",
                "axis": {"tickMinStep": 1, "format": "d"},
            },
            "y": {"field": "volume", "type": "quantitative", "title": "volume of the front"},
        },
        "layer": _layers(),
    }


def _layers() -> list[Record]:
    """The volume, and the trials that raised it."""
    picked = "picked !== null && datum.trial === picked"
    return [
        {
            "name": "volume",
            "mark": {
                "type": "line",
                "interpolate": "step-after",
                "color": colours.FRONT_COLOUR,
                "aria": False,
            },
        },
        {
            "name": "raised",
            "transform": [{"filter": "datum.raised"}],
            "mark": {"type": "point", "filled": True, "color": colours.FRONT_COLOUR},
            "encoding": {
                "size": {"condition": {"test": picked, "value": 160}, "value": 40},
                "tooltip": [{"field": "trial"}, {"field": "volume", "format": ".4f"}],
            },
        },
    ]
