"""The front: test quality against a cost, and the model that a budget would take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.costs import COSTS
from orchestrator.report import colours
from orchestrator.report.limits import quality_limits, upright
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
from orchestrator.results.quantities import axis_words, cost_words, mean_and_spread, percent
from orchestrator.results.rows import ConfirmedRow, Rows, TrialRow
from orchestrator.results.undertrained import undertraining

_STEP = 0.5
"""Step of the budget's slider, in percent of the dense cost."""
_DENSE_COLOUR = "#777777"
"""Seen on light and on dark; the page draws the rule in the colour of its text."""
_SHAPES = ("square", "triangle-up", "diamond", "triangle-down", "cross")
_TRIAL = "trial"
_CONFIRMED = ("baseline", "front", "dense")
"""Values of `what` in the chart's records, drawn in this order."""
_FRONT = "front"
_DENSE = "dense model"
_FINISHED = "trials, completed (validation)"
_STOPPED = "trials, ended early (validation)"


def front_section(view: StudyView) -> Section:
    """The front over all trials, with the choice of a budget, and as a table."""
    explanation = (
        f"Each point is a model: how good it is ({view.quality}, {better(view.sign)}) against what "
        "is left of a cost. Confirmed models stand on test data with one standard deviation over "
        "their seeds, trials faintly on validation data; thin lines lead from a trial to those "
        "that began from its weights. Point at a model, and it lights up everywhere."
    )
    parts: list[SectionPart] = [*_headline(view), Chart("front", _spec(view))]
    behind = undertraining(view.rows, view.quality, view.sign, view.summary)
    if behind:
        parts.insert(1, Line(f"{behind[0].upper()}{behind[1:]}."))
    if view.rows.front:
        parts += [Line("", name="choice"), _table(view)]
    else:
        parts.append(Line("No model is confirmed yet: these are the trials so far."))
    return Section("The front", explanation, parts)


def _headline(view: StudyView) -> list[Line]:
    """How many trials and models there are, and the smallest that is about as good as dense."""
    rows = view.rows
    words = f"{len(rows.trials)} trials, {len(rows.front)} confirmed models."
    smallest = view.summary.get("smallest", {})
    if not smallest:
        return [Line(words)]
    near = f"within {smallest['tolerance']:.3g} of the dense model's {view.quality}"
    if smallest["trial"] is None:
        return [Line(f"{words} No model is {near}.")]
    share = f"{percent(smallest['ratio'])} of the {axis_words(rows.axis)}"
    return [Line(f"{words} The smallest {near} is {_named(smallest['trial'])}: {share}.")]


def _named(name: str | int) -> str:
    """A model by the name that it has in summary.json: 3 and 'uniform-3'."""
    return f"trial {name}" if str(name).isdigit() else str(name).replace("-", " ")


def better(sign: float) -> str:
    """Which way a quality of this sign is better, in words."""
    return "more is better" if sign > 0 else "less is better"


def offered_costs(rows: Rows) -> list[str]:
    """Costs of which the confirmed models (the trials, where there is none) have a ratio.

    The axis of the study comes first.
    """
    models: Sequence[ConfirmedRow | TrialRow] = rows.front or rows.trials
    present = {cost for row in models for cost in row.ratios}
    ordered = [rows.axis, *(cost for cost in COSTS if cost != rows.axis)]
    return [cost for cost in ordered if cost in present] or [rows.axis]


def records(view: StudyView) -> list[Record]:
    """Everything that the chart shows, one record for each mark; `what` says of which layer."""
    rows = view.rows
    shown = [row for row in rows.trials if row.quality is not None and math.isfinite(row.quality)]
    by_number = {row.number: row for row in shown}
    made: list[Record] = []
    for row in shown:
        made.append(_trial(row))
        parent = None if row.parent is None else by_number.get(row.parent)
        if parent is not None:
            made.append(_link(row, parent))
    for model in rows.baselines:
        made.append(_confirmed("baseline", f"{model.origin} baseline", model))
    for model in rows.front:
        made.append(_confirmed("front", _FRONT, model))
    if rows.dense is not None:
        made.append({**_confirmed("dense", _DENSE, rows.dense), "ratios": _whole(view)})
    return made


def _whole(view: StudyView) -> dict[str, float]:
    return dict.fromkeys(offered_costs(view.rows), 1.0)


def _trial(row: TrialRow) -> Record:
    parent = "the dense model" if row.parent is None else f"trial {row.parent}"
    return {
        "what": _TRIAL,
        "series": _FINISHED if row.state == "completed" else _STOPPED,
        "trial": str(row.number),
        "model": " ".join(["trial", str(row.number), row.method]).rstrip(),
        "state": row.state,
        "began": parent,
        "quality": row.quality,
        "ratios": _rounded(row.ratios),
    }


def _link(row: TrialRow, parent: TrialRow) -> Record:
    return {
        "what": "link",
        "trial": str(row.number),
        "quality": row.quality,
        "parent_quality": parent.quality,
        "ratios": _rounded(row.ratios),
        "parent_ratios": _rounded(parent.ratios),
    }


def _confirmed(what: str, series: str, row: ConfirmedRow) -> Record:
    name = series if row.trial is None else f"{series}, {row.words}"
    return {
        "what": what,
        "series": series,
        "trial": None if row.trial is None else _mark(what, row),
        "model": f"{name} {row.method}".rstrip(),
        "words": row.words,
        "quality": row.test_mean,
        "spread": row.test_std,
        "low": row.test_mean - row.test_std,
        "high": row.test_mean + row.test_std,
        "seeds": row.seeds,
        "ratios": dict(row.ratios),
    }


def _mark(what: str, row: ConfirmedRow) -> str:
    """What lights up with the mark: a baseline's model with the one that it is matched to."""
    return row.name if what == _FRONT else str(row.trial)


def _rounded(ratios: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{ratio:.4g}") for name, ratio in ratios.items()}


def _spec(view: StudyView) -> dict[str, Any]:
    data = records(view)
    looks = _looks(data)
    return {
        "description": (
            f"Scatter plot of {view.quality} against the share of a cost that is left, for the "
            f"models of the study {view.name}; the table below says the same in numbers."
        ),
        "width": "container",
        "height": 380,
        "data": {"values": data},
        "params": _params(view),
        "transform": positions(),
        "encoding": quality_axis(
            view.quality, view.sign, quality_limits(upright(view.rows, view.sign))
        ),
        "layer": [
            _links(),
            _points("trials", [_TRIAL], looks, size=36),
            _lines(looks),
            _dense_rule(),
            _spreads(looks),
            _points("models", _CONFIRMED, looks, size=80),
        ],
    }


def _params(view: StudyView) -> list[dict[str, Any]]:
    costs = offered_costs(view.rows)
    labels = [axis_words(cost) for cost in costs]
    ratios = [row.ratios[cost] for row in view.rows.front for cost in costs if cost in row.ratios]
    least = math.floor(100 * min([*ratios, 1.0]))
    most = math.ceil(100 * max([*ratios, 1.0]))
    select = {"input": "select", "options": costs, "labels": labels, "name": "Cost "}
    scale = {"input": "select", "options": ["log", "linear"], "name": "Scale "}
    budget = {"input": "range", "min": least, "max": most, "step": _STEP, "name": "Budget, % "}
    return [
        picked_param(),
        {"name": "cost", "value": costs[0], "bind": select},
        {"name": "scale", "value": "log", "bind": scale},
        {"name": "budget", "value": most, "bind": budget},
    ]


def positions() -> list[dict[str, Any]]:
    """Positions along the cost that is chosen; on the log scale they are octaves."""

    def position(ratio: str) -> str:
        return f"scale === 'log' ? log({ratio}) / LN2 : {ratio}"

    return [
        {"calculate": "datum.ratios[cost]", "as": "ratio"},
        {"filter": "datum.ratio > 0"},
        {"calculate": position("datum.ratio"), "as": "x"},
        {"calculate": "datum.parent_ratios ? datum.parent_ratios[cost] : null", "as": "before"},
        {"calculate": position("datum.before"), "as": "x2"},
    ]


def quality_axis(quality: str, sign: float, limits: tuple[float, float]) -> dict[str, Any]:
    """The axes: the position along the cost, and the quality within `limits` of upright rows."""
    low, high = limits
    if sign < 0:
        low, high = -high, -low
    step = "scale === 'log' && span(domain('x')) > 2 ? 1 : 0.01"
    label = "format(scale === 'log' ? pow(2, datum.value) : datum.value, '.3~p')"
    return {
        "x": {
            "field": "x",
            "type": "quantitative",
            "scale": {"zero": False, "nice": False, "padding": 14},
            "axis": {"labelExpr": label, "tickCount": 6, "tickMinStep": {"expr": step}},
            "title": "cost that is left, share of the dense model's",
        },
        "y": {
            "field": "quality",
            "type": "quantitative",
            "scale": {"domain": [low, high], "clamp": True, "reverse": sign < 0},
            "title": f"{quality} ({better(sign)})",
        },
    }


def _only(*kinds: str) -> list[dict[str, Any]]:
    return [{"filter": {"field": "what", "oneOf": kinds}}]


def _opacity(usual: float) -> dict[str, Any]:
    """What is pointed at is plain, and what lies above the budget is faint."""
    return {
        "condition": [
            {"test": "picked !== null && datum.trial === picked", "value": 1.0},
            {"test": "100 * datum.ratio > budget && datum.what !== 'dense'", "value": 0.15 * usual},
        ],
        "value": usual,
    }


def _links() -> dict[str, Any]:
    return {
        "name": "links",
        "transform": [*_only("link"), {"filter": "datum.before > 0"}],
        "mark": {"type": "rule", "color": colours.TRIAL, "strokeWidth": 0.7, "aria": False},
        "encoding": {
            "x2": {"field": "x2"},
            "y2": {"field": "parent_quality"},
            "opacity": _opacity(0.3),
        },
    }


def _looks(data: Iterable[Record]) -> dict[str, Any]:
    """The encodings of the series' colours and shapes, which share one legend."""
    known = {_FRONT: (colours.FRONT_COLOUR, "circle"), _DENSE: (_DENSE_COLOUR, "stroke")}
    named = list(dict.fromkeys([record["series"] for record in data if "series" in record]))
    ladders = [name for name in named if name.endswith("baseline")]
    for index, name in enumerate(ladders):
        known[name] = (
            colours.BASELINE_COLOURS[index % len(colours.BASELINE_COLOURS)],
            _SHAPES[index % len(_SHAPES)],
        )
    known[_FINISHED] = (colours.TRIAL, "circle")
    known[_STOPPED] = ("#B0B0B0", "triangle-down")
    domain = [name for name in known if name in named]
    legend = {
        "orient": "bottom",
        "columns": {"expr": "width < 420 ? 1 : 3"},
        "title": None,
        "labelLimit": 260,
        "symbolOpacity": 1,
    }

    def encoding(place: int) -> dict[str, Any]:
        scale = {"domain": domain, "range": [known[name][place] for name in domain]}
        return {"field": "series", "type": "nominal", "scale": scale, "legend": legend}

    return {"color": encoding(0), "shape": encoding(1)}


def _lines(looks: Record) -> Record:
    """The front's line, and the baselines' dashed."""
    front = "datum.what === 'front'"
    return {
        "name": "lines",
        "transform": _only("baseline", "front"),
        "mark": {"type": "line", "opacity": 0.85, "aria": False},
        "encoding": {
            "color": looks["color"],
            "strokeWidth": {"condition": {"test": front, "value": 2.2}, "value": 1.2},
            "strokeDash": {"condition": {"test": front, "value": [1, 0]}, "value": [4, 3]},
        },
    }


def _spreads(looks: Record) -> Record:
    """Bars of one standard deviation on each side."""
    return {
        "name": "spreads",
        "transform": _only(*_CONFIRMED),
        "mark": {"type": "rule", "strokeWidth": 1.4, "aria": False},
        "encoding": {
            "y": {"field": "low"},
            "y2": {"field": "high"},
            "color": looks["color"],
            "opacity": _opacity(0.8),
        },
    }


def _dense_rule() -> Record:
    return {
        "name": "dense-rule",
        "transform": _only("dense"),
        "mark": {"type": "rule", "color": _DENSE_COLOUR, "strokeWidth": 1, "strokeDash": [8, 4]},
        "encoding": {"x": None},
    }


def _points(name: str, kinds: Sequence[str], looks: Record, *, size: int) -> Record:
    trial = _TRIAL in kinds
    picked = {"test": "picked !== null && datum.trial === picked", "value": 3 * size}
    return {
        "name": name,
        "transform": _only(*kinds),
        "mark": {"type": "point", "filled": not trial, "strokeWidth": 1.2, "aria": not trial},
        "encoding": {
            **looks,
            "size": {"condition": picked, "value": size},
            "opacity": _opacity(0.55 if trial else 0.95),
            "tooltip": _tooltip(trial),
        },
    }


def _tooltip(trial: bool) -> list[dict[str, str]]:
    """What the mark says of itself; `trial` tells a trial from a confirmed model."""
    shown = [
        {"field": "model"},
        {"field": "quality", "format": ".4f"},
        {"field": "ratio", "format": ".1%", "title": "cost left"},
    ]
    if trial:
        return [*shown, {"field": "state"}, {"field": "began", "title": "began from"}]
    spread = {"field": "spread", "format": ".4f", "title": "standard deviation"}
    return [*shown, spread, {"field": "seeds"}]


def _table(view: StudyView) -> PageTable:
    """The confirmed models from large to small, behind the dense one."""
    rows = view.rows
    costs = _telling_costs(rows)
    models = sorted(rows.front, key=lambda row: -row.cost)
    if rows.dense is not None:
        models = [rows.dense, *models]
    cells = []
    for row in models:
        line = [row.words, row.method, mean_and_spread(row.test_mean, row.test_std)]
        line.append("" if rows.dense is None else f"{row.test_mean - rows.dense.test_mean:+.4f}")
        line += [_cost_cell(row, cost) for cost in costs]
        cells.append(line)
    header = ["model", "method", view.quality, "against dense", *map(axis_words, costs)]
    caption = "The confirmed models on test data, mean ± standard deviation"
    return PageTable(
        caption, header, cells, trials=[None if row.trial is None else row.name for row in models]
    )


def _telling_costs(rows: Rows) -> list[str]:
    """The offered costs, without those that are all but the same as another one."""
    telling: list[str] = []
    for cost in offered_costs(rows):
        ratios = [row.ratios.get(cost, 0.0) for row in rows.front]
        known = [[row.ratios.get(other, 0.0) for row in rows.front] for other in telling]
        if not any(_alike(ratios, others) for others in known):
            telling.append(cost)
    return telling


def _alike(ratios: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(a - b) <= 5e-4 for a, b in zip(ratios, others, strict=True))


def _cost_cell(row: ConfirmedRow, cost: str) -> str:
    if cost not in row.costs or cost not in row.ratios:
        return ""
    return f"{cost_words(cost, row.costs[cost])} ({percent(row.ratios[cost])})"
