"""What decided: the decisions of the trials, what came of them, and which of them mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report import colours
from orchestrator.report.sections.front import better
from orchestrator.report.sections.parts import (
    Chart,
    Line,
    PageTable,
    Record,
    Section,
    SectionPart,
    picked_param,
)
from orchestrator.report.view import StudyView
from orchestrator.results.decisions import EVALUATOR, Importance
from orchestrator.results.quantities import axis_words, cost_words, percent
from orchestrator.results.rows import TrialRow

MOST_AXES = 10
"""Axes that are told apart on a page."""
MOST_BARS = 12
"""Parameters whose importance is drawn; the table has all."""
WORDS = {
    "flops_ratio": "target",
    "latency_ratio": "target",
    "equal_loss": "equal loss",
    "offsets": "spread of offsets",
    "stages": "spread of stages",
    "thresholds": "mean threshold",
    "patterns": "share with pattern",
    "blocks": "blocks dropped",
    "schedule.steps": "pruning steps",
    "schedule.shape": "schedule",
    "schedule.start": "schedule start",
    "schedule.end": "schedule end",
    "finetune.rounds": "rounds",
    "distillation.weight": "distillation",
    "activation.level": "activation level",
    "then.sparsity": "sparsity",
    "then.applied": "pattern",
}
"""Decisions as people read them; others are called as their parameter."""
_ON_LOG = ("flops_ratio", "latency_ratio", "ratio")
_PERCENT = ("flops_ratio", "latency_ratio", "ratio", "patterns", "then.sparsity")
_FOUND = ("quality", "ratio", "latency_ms")
"""Outcomes, drawn behind the decisions."""
_WIDE_AXIS = 95
"""Pixels of an axis in which its name has room."""


@dataclass(frozen=True)
class _Axis:
    """One axis: the values of the trials, None where a trial has none, and what it is called."""

    name: str
    words: str
    values: Sequence[Any]

    @property
    def choices(self) -> list[str]:
        """The values of an axis without numbers; empty for numbers."""
        known = [value for value in self.values if value is not None]
        if all(_is_number(value) for value in known):
            return []
        return sorted({str(value) for value in known})

    def places(self) -> list[float | None]:
        """Each trial's place from 0 (bottom) to 1."""
        choices = self.choices
        if choices:
            heights = {choice: index for index, choice in enumerate(choices)}
            raw = [None if v is None else float(heights[str(v)]) for v in self.values]
        else:
            raw = [None if v is None else self._height(float(v)) for v in self.values]
        known = [height for height in raw if height is not None]
        low = min(known)
        span = max(known) - low or 1.0
        return [None if h is None else round((h - low) / span, 4) for h in raw]

    def _height(self, value: float) -> float:
        return math.log(value) if self.name in _ON_LOG and value > 0.0 else value

    def said(self, value: Any) -> str:
        if value is None:
            return "not known"
        if not _is_number(value):
            return str(value)
        if self.name in _PERCENT:
            return percent(value)
        if self.name == "latency_ms":
            return cost_words(self.name, value)
        return f"{value:.4g}"

    def marks(self) -> list[tuple[float, str]]:
        """Places and texts beside the axis: every choice, or the least and the most."""
        choices = self.choices
        if choices:
            last = max(1, len(choices) - 1)
            return [(index / last, choice) for index, choice in enumerate(choices)]
        known = [value for value in self.values if value is not None]
        return [(0.0, self.said(min(known))), (1.0, self.said(max(known)))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def decided_section(view: StudyView) -> Section:
    """Parallel coordinates of the completed trials, and the importance of the parameters."""
    explanation = (
        "Each line is a completed trial: what was decided, then what came of it on validation "
        f"data, coloured by {view.quality} ({better(view.sign)}). Point at a line, and the trial "
        "lights up everywhere. Decisions that were the same in all trials are left out."
    )
    trials = [row for row in view.rows.trials if _shown(row, view)]
    axes = _axes(view, trials)
    parts: list[SectionPart] = []
    if len(trials) < 2 or len(axes) < 2:
        parts.append(Line("Fewer than two trials have completed, or nothing told them apart."))
    else:
        parts.append(Chart("decisions", _coordinates(view, trials, axes)))
    return Section("What decided", explanation, [*parts, *_importance(view, len(trials))])


def _shown(row: TrialRow, view: StudyView) -> bool:
    decided = view.decisions.trials.get(row.number)
    good = row.quality is not None and math.isfinite(row.quality)
    return row.state == "completed" and bool(decided) and good


def _axes(view: StudyView, trials: Sequence[TrialRow]) -> list[_Axis]:
    """The decisions that differ, of which the most important ones stay, then the outcomes."""
    decided = [view.decisions.trials[row.number] for row in trials]
    names = list(dict.fromkeys([name for values in decided for name in values]))
    axes = []
    for name in names:
        values = [values.get(name) for values in decided]
        axes.append(_Axis(name, WORDS.get(name, name), values))
    outcomes = [axis for axis in _outcomes(view, trials) if _differs(axis)]
    axes = [axis for axis in axes if _differs(axis)]
    weights = _weights(view.decisions.importance)
    ranked = sorted(axes, key=lambda axis: -weights.get(axis.name, 0.0))
    kept = {axis.name for axis in ranked[: MOST_AXES - len(outcomes)]}
    return [axis for axis in axes if axis.name in kept] + outcomes


def _outcomes(view: StudyView, trials: Sequence[TrialRow]) -> list[_Axis]:
    axis = view.rows.axis
    shares = [row.ratios.get(axis) for row in trials]
    latencies = [row.costs.get("latency_ms") for row in trials]
    return [
        _Axis("quality", view.quality, [row.quality for row in trials]),
        _Axis("ratio", f"{axis_words(axis)} left", shares),
        _Axis("latency_ms", "latency", latencies),
    ]


def _differs(axis: _Axis) -> bool:
    return len({value for value in axis.values if value is not None}) > 1


def _weights(importance: Sequence[Importance]) -> Mapping[str, float]:
    """The importance of each decision; a family has that of its parameters together."""
    families = {"offset": "offsets", "stage": "stages", "threshold": "thresholds"}
    families["pattern"] = "patterns"
    weights: dict[str, float] = {}
    for one in importance:
        family, dot, _ = one.name.partition(".")
        name = families.get(family, one.name) if dot else one.name
        weights[name] = weights.get(name, 0.0) + one.front
    return weights


def _coordinates(view: StudyView, trials: Sequence[TrialRow], axes: Sequence[_Axis]) -> Record:
    words = [axis.words for axis in axes]
    narrow = f"width < {_WIDE_AXIS * len(axes)}"
    marks = []
    for axis in axes:
        marks += [{"axis": axis.words, "at": at, "text": text} for at, text in axis.marks()]
    height = {"field": "at", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1]}}
    return {
        "description": (
            f"Parallel coordinates of {len(trials)} completed trials of the study {view.name}: "
            f"{', '.join(words)}. The table of importances below says what mattered."
        ),
        "width": "container",
        "height": 300,
        "params": [picked_param()],
        "encoding": {"x": _places(words, narrow), "y": height},
        "layer": [
            {
                "data": {"values": _records(trials, axes)},
                "transform": [
                    {"calculate": f"sequence({len(axes)})", "as": "place"},
                    {"flatten": ["at", "place"]},
                    {"calculate": f"{words!r}[datum.place]", "as": "axis"},
                ],
                "layer": [_lines(view, axes)],
            },
            _texts(marks, narrow),
        ],
    }


def _places(words: Sequence[str], narrow: str) -> Record:
    """The axes side by side, with their names above them."""
    return {
        "field": "axis",
        "type": "nominal",
        "sort": words,
        "title": None,
        "scale": {"type": "point", "padding": 0.6},
        "axis": {
            "orient": "top",
            "labelAngle": {"expr": f"{narrow} ? -60 : 0"},
            "labelAlign": {"expr": f"{narrow} ? 'left' : 'center'"},
            "labelPadding": 16,
            "labelLimit": 120,
            "grid": True,
            "domain": False,
            "ticks": False,
        },
    }


def _records(trials: Sequence[TrialRow], axes: Sequence[_Axis]) -> list[Record]:
    places = [axis.places() for axis in axes]
    records = []
    for index, row in enumerate(trials):
        record: Record = {
            "trial": str(row.number),
            "model": " ".join(["trial", str(row.number), row.method]).rstrip(),
            "good": row.quality,
            "at": [place[index] for place in places],
            "said": [axis.said(axis.values[index]) for axis in axes],
        }
        records.append(record)
    return records


def _lines(view: StudyView, axes: Sequence[_Axis]) -> Record:
    picked = "picked !== null && datum.trial === picked"
    said = [{"field": f"said[{n}]", "title": axis.words} for n, axis in enumerate(axes)]
    return {
        "name": "decided",
        "mark": {"type": "line", "aria": False, "strokeJoin": "round"},
        "encoding": {
            "detail": {"field": "trial"},
            "color": {
                "field": "good",
                "type": "quantitative",
                "scale": {"scheme": "cividis", "reverse": view.sign < 0, "zero": False},
                "legend": {"orient": "bottom", "title": view.quality, "gradientLength": 160},
            },
            "opacity": {"condition": {"test": picked, "value": 1.0}, "value": 0.55},
            "strokeWidth": {"condition": {"test": picked, "value": 4.0}, "value": 1.1},
            "tooltip": [{"field": "model"}, *said],
        },
    }


def _texts(marks: list[Record], narrow: str) -> Record:
    """What stands at the ends of the axes, outside of the lines."""
    side = "datum.at === 1 ? -8 : datum.at === 0 ? 9 : 0"
    return {
        "data": {"values": marks},
        "mark": {
            "type": "text",
            "fontSize": {"expr": f"{narrow} ? 8 : 10"},
            "dy": {"expr": side},
            "aria": False,
        },
        "encoding": {"text": {"field": "text"}},
    }


def _importance(view: StudyView, completed: int) -> list[SectionPart]:
    importance = view.decisions.importance
    if not importance:
        return [Line(f"{completed} completed trials are too few to say which decisions mattered.")]
    words = (
        f"{EVALUATOR} (Optuna) compares the parameters of the best trials with those of all: a "
        "share near zero says that the best took the same values as the others. The best are "
        f"those nearest to the front, or those of the best {view.quality} at any cost, where what "
        "the target allows decides most."
    )
    caption = f"The importance of all {len(importance)} parameters"
    header = ["parameter", "for the front", f"for {view.quality} alone"]
    cells = [[one.name, percent(one.front), percent(one.quality)] for one in importance]
    table = PageTable(caption, header, cells, folded=True)
    return [Line(words), Chart("importance", _bars(view, importance[:MOST_BARS])), table]


def _bars(view: StudyView, importance: Sequence[Importance]) -> Record:
    ends = {"for the front": "front", f"for {view.quality} alone": "quality"}
    records = []
    for one in importance:
        for end, name in ends.items():
            share = round(getattr(one, name), 4)
            records.append({"parameter": one.name, "end": end, "share": share})
    names = [one.name for one in importance]
    domain = list(ends)
    return {
        "description": (
            f"Bars: the importance of {len(names)} parameters of the study {view.name} by "
            f"{EVALUATOR}. The table below has the numbers."
        ),
        "width": "container",
        "height": 22 * len(names),
        "data": {"values": records},
        "params": [picked_param()],
        "mark": {"type": "bar", "aria": False},
        "encoding": {
            "y": {"field": "parameter", "type": "nominal", "sort": names, "title": None},
            "yOffset": {"field": "end", "sort": domain},
            "x": {"field": "share", "type": "quantitative", "axis": {"format": ".0%"}},
            "color": {
                "field": "end",
                "type": "nominal",
                "scale": {"domain": domain, "range": [colours.FRONT_COLOUR, colours.TRIAL]},
                "legend": {"orient": "bottom", "title": None},
            },
            "tooltip": [
                {"field": "parameter"},
                {"field": "share", "format": ".1%"},
                {"field": "end", "title": "best"},
            ],
        },
    }
