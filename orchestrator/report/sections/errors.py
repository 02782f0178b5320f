"""The error curve of each group, where the method scores units by the error that they leave."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report import colours
from orchestrator.report.sections.parts import Chart, Line, Record, SectionPart, picked_param
from orchestrator.report.view import StudyView
from orchestrator.results.error_curves import error_at
from orchestrator.results.quantities import FREE_ERROR, percent

_TICKS = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def error_parts(view: StudyView, models: Sequence[str]) -> list[SectionPart]:
    """A line of words and the chart; nothing where the errors are not known.

    `models` are names of the front's models.
    """
    if not view.errors:
        return []
    words = (
        "Each line is a group of the dense network: how wrong what follows it gets as its units "
        "go, one after another, while the others make up for them. The error is squared, over the "
        "variance of the outputs, and summed over all layers that consume the group. Below the "
        f"dashed line, {percent(FREE_ERROR)}, units are free to go. Points stand where the model "
        "that you point at is on each line."
    )
    return [Line(words), Chart("errors", _spec(view, models))]


def _spec(view: StudyView, models: Sequence[str]) -> Record:
    return {
        "description": (
            f"Lines: the error behind each of {len(view.errors)} groups of the study {view.name} "
            "over the share of the group's units that are gone."
        ),
        "width": "container",
        "height": 300,
        "params": [picked_param()],
        "encoding": {"x": _removed(), "y": _error(view)},
        "layer": [_bound(), *_curves(view), _places(view, models)],
    }


def _removed() -> Record:
    return {
        "field": "removed",
        "type": "quantitative",
        "title": "share of the group's units that are gone",
        "scale": {"domain": [0, 1]},
        "axis": {"format": ".0%", "tickCount": 10},
    }


def _error(view: StudyView) -> Record:
    """On a scale that is linear below `FREE_ERROR`, so that it has a 0, and of logs above."""
    most = max([curve[-1][1] for curve in view.errors.values()])
    return {
        "field": "error",
        "type": "quantitative",
        "title": "error of what follows, over its variance",
        "scale": {"type": "symlog", "constant": FREE_ERROR, "domainMin": 0},
        "axis": {"format": ".0%", "values": [tick for tick in _TICKS if tick <= most]},
    }


def _bound() -> Record:
    return {
        "name": "free",
        "data": {"values": [{"error": FREE_ERROR}]},
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": colours.BASELINE_COLOURS[0]},
        "encoding": {"x": None},
    }


def _curves(view: StudyView) -> list[Record]:
    """The lines, and a wide one over each that is not seen and easy to point at."""
    data = {"values": _points(view)}
    pointed = {"condition": {"param": "pointed", "empty": False, "value": 1.0}, "value": 0.35}
    group = {"field": "group", "type": "nominal"}
    over = {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["group"]}
    return [
        {
            "name": "curves",
            "data": data,
            "mark": {"type": "line", "color": colours.TRIAL, "strokeWidth": 1.5, "aria": False},
            "encoding": {"detail": group, "opacity": pointed},
        },
        {
            "name": "near",
            "data": data,
            "params": [{"name": "pointed", "select": over}],
            "mark": {"type": "line", "strokeWidth": 9, "opacity": 0, "aria": False},
            "encoding": {"detail": group, "tooltip": [group]},
        },
    ]


def _points(view: StudyView) -> list[Record]:
    records = []
    for group, curve in view.errors.items():
        for removed, error in curve:
            records.append(_point(group, removed, error))
    return records


def _places(view: StudyView, models: Sequence[str]) -> Record:
    """Where the picked model stands on each line."""
    records = []
    for trial in models:
        for group, curve in view.errors.items():
            removed = 1.0 - view.kept[trial].get(group, 1.0)
            records.append({"trial": trial, **_point(group, removed, error_at(curve, removed))})
    return {
        "name": "places",
        "data": {"values": records},
        "transform": [{"filter": "picked !== null && datum.trial === picked"}],
        "mark": {"type": "point", "filled": True, "size": 40, "color": colours.FRONT_COLOUR},
        "encoding": {
            "tooltip": [
                {"field": "group"},
                {"field": "trial", "title": "model"},
                {"field": "removed", "format": ".1%", "title": "units gone"},
                {"field": "error", "format": ".1%"},
            ]
        },
    }


def _point(group: str, removed: float, error: float) -> Record:
    return {"group": group, "removed": round(removed, 4), "error": float(f"{error:.3g}")}
