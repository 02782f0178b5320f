"""Studies side by side: fronts on one axis, volumes with their spread over seeds, groups."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.limits import quality_limits, upright
from orchestrator.report.sections.front import better, offered_costs, positions, quality_axis
from orchestrator.report.sections.parts import Chart, PageTable, Record, Section, picked_param
from orchestrator.report.sections.pruned import group_axis
from orchestrator.report.view import StudyView
from orchestrator.results.quantities import axis_words, duration, mean_and_spread, percent
from orchestrator.results.rows import ConfirmedRow, Rows
from orchestrator.search.front import LEAST_RATIO, hypervolume

BUDGETS = (0.5, 0.25)
"""Shares of the dense cost at which the best models are compared."""
GROUPS_AT = 0.5
"""Share of the dense FLOPs near which the models' groups are compared."""
STEP = 15
"""Pixels of a row of the map of groups."""
END_OF_NAME = "length(datum.label) > 16 ? '…' + slice(datum.label, -15) : datum.label"
"""What tells studies apart stands at the end of their names."""


@dataclass(frozen=True)
class Compared:
    """Finished studies with one quality; `variants` has a label for each.

    Repetitions with other seeds have the same label.
    """

    views: Sequence[StudyView]
    variants: Sequence[str]

    @property
    def quality(self) -> str:
        return self.views[0].quality

    @property
    def sign(self) -> float:
        return self.views[0].sign

    @property
    def rows(self) -> Rows:
        """All confirmed models, for the limits of axes."""
        front = [row for view in self.views for row in view.rows.front]
        dense = [view.rows.dense for view in self.views if view.rows.dense is not None]
        return Rows((), [*front, *dense])

    def costs(self) -> list[str]:
        """Costs whose ratios all studies know, the first study's axis first."""
        known = [set(offered_costs(view.rows)) for view in self.views]
        return [
            cost for cost in offered_costs(self.views[0].rows) if set.intersection(*known) >= {cost}
        ]

    def reference(self) -> float:
        """The quality above which volumes are counted: the lowest of the studies'."""
        values = []
        for view in self.views:
            stored = view.summary.get("reference", {}).get(view.quality)
            if stored is not None:
                values.append(self.sign * stored)
        return min(values, default=0.0)

    def by_variant(self) -> dict[str, list[StudyView]]:
        grouped: dict[str, list[StudyView]] = {}
        for variant, view in zip(self.variants, self.views, strict=True):
            grouped.setdefault(variant, []).append(view)
        return grouped


@dataclass(frozen=True)
class Score:
    """One variant: the mean and spread over its seeds, None where no study has the number."""

    variant: str
    studies: Sequence[str]
    volume: tuple[float, float | None]
    within: Mapping[float, tuple[float, float | None] | None]
    trials: int
    seconds: float


def scores(compared: Compared) -> list[Score]:
    """The variants, the largest volume first.

    The volume is the area over the log of the cost between the confirmed front, on test data, and a
    reference quality that all studies share. `within` has the best test quality under each budget.
    """
    cost = compared.costs()[0]
    reference = compared.reference()
    made = []
    for variant, views in compared.by_variant().items():
        volumes = [_volume(view, cost, reference) for view in views]
        within = {}
        for budget in BUDGETS:
            best = [_best_within(view, cost, budget) for view in views]
            known = [value for value in best if value is not None]
            within[budget] = _mean(known) if known else None
        made.append(
            Score(
                variant,
                [view.name for view in views],
                _mean(volumes),
                within,
                sum([len(view.rows.trials) for view in views]),
                sum([view.summary.get("seconds", 0.0) for view in views]),
            )
        )
    return sorted(made, key=lambda score: -score.volume[0])


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None where there is one value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), spread


def _volume(view: StudyView, cost: str, reference: float) -> float:
    rows = [row for row in view.rows.front if row.ratios.get(cost)]
    qualities = [view.sign * row.test_mean for row in rows]
    return hypervolume(qualities, [row.ratios[cost] for row in rows], reference, LEAST_RATIO)


def _best_within(view: StudyView, cost: str, budget: float) -> float | None:
    """The test quality of the best model, by mean less spread, within a share of the cost."""
    within = [row for row in view.rows.front if row.ratios.get(cost, math.inf) <= budget]
    if not within:
        return None
    best = max(within, key=lambda row: view.sign * row.test_mean - row.test_std)
    return best.test_mean


def comparison_sections(compared: Compared) -> list[Section]:
    """The sections of the page; groups only where all studies prune the same network."""
    sections = [_fronts(compared), _scores(compared)]
    names = [[group.name for group in view.network.groups] for view in compared.views]
    if names[0] and all(name == names[0] for name in names):
        sections.append(_groups(compared))
    return sections


def _fronts(compared: Compared) -> Section:
    explanation = (
        f"The confirmed models of {len(compared.views)} studies on test data: {compared.quality} "
        f"({better(compared.sign)}) against what is left of a cost, with one standard deviation "
        "over the seeds of the confirmation. Point at a model, and its study is named."
    )
    return Section("The fronts", explanation, [Chart("front", _spec(compared))])


def _records(compared: Compared) -> list[Record]:
    records = []
    for index, (view, variant) in enumerate(zip(compared.views, compared.variants, strict=True)):
        for row in view.rows.front:
            records.append(_record(view, variant, index, row))
    return records


def _record(view: StudyView, variant: str, index: int, row: ConfirmedRow) -> Record:
    return {
        "what": "front",
        "trial": f"{index}/{row.name}",
        "model": f"{row.words} of {view.name}",
        "study": view.name,
        "variant": variant,
        "quality": row.test_mean,
        "spread": row.test_std,
        "low": row.test_mean - row.test_std,
        "high": row.test_mean + row.test_std,
        "ratios": dict(row.ratios),
    }


def _spec(compared: Compared) -> dict[str, Any]:
    limits = quality_limits(upright(compared.rows, compared.sign))
    return {
        "description": (
            f"Scatter plot of {compared.quality} against the share of a cost that is left, one "
            "line for each study; the table below compares them in numbers."
        ),
        "width": "container",
        "height": 420,
        "data": {"values": _records(compared)},
        "params": _params(compared),
        "transform": positions(),
        "encoding": quality_axis(compared.quality, compared.sign, limits),
        "layer": _layers(_colour(compared)),
    }


def _params(compared: Compared) -> list[Record]:
    costs = compared.costs()
    labels = [axis_words(cost) for cost in costs]
    cost = {"input": "select", "options": costs, "labels": labels, "name": "Cost "}
    scale = {"input": "select", "options": ["log", "linear"], "name": "Scale "}
    return [
        picked_param(),
        {"name": "cost", "value": costs[0], "bind": cost},
        {"name": "scale", "value": "log", "bind": scale},
    ]


def _colour(compared: Compared) -> Record:
    few = len(set(compared.variants)) <= 10
    return {
        "field": "variant",
        "type": "nominal",
        "scale": {"scheme": "tableau10" if few else "tableau20"},
        "legend": {"orient": "bottom", "columns": {"expr": "width < 420 ? 1 : 3"}, "title": None},
    }


def _layers(colour: Record) -> list[Record]:
    """A line for each study, its models' spreads, and the models."""
    picked = {"test": "picked !== null && datum.trial === picked", "value": 220}
    tooltip = [
        {"field": "model"},
        {"field": "variant"},
        {"field": "quality", "format": ".4f"},
        {"field": "spread", "format": ".4f", "title": "standard deviation"},
        {"field": "ratio", "format": ".1%", "title": "cost left"},
    ]
    return [
        {
            "name": "lines",
            "mark": {"type": "line", "opacity": 0.8, "aria": False},
            "encoding": {"color": colour, "detail": {"field": "study"}},
        },
        {
            "name": "spreads",
            "mark": {"type": "rule", "strokeWidth": 1.2, "aria": False},
            "encoding": {"y": {"field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        {
            "name": "models",
            "mark": {"type": "point", "filled": True},
            "encoding": {
                "color": colour,
                "size": {"condition": picked, "value": 60},
                "tooltip": tooltip,
            },
        },
    ]


def header(compared: Compared) -> list[str]:
    """The columns of the table of scores."""
    words = axis_words(compared.costs()[0])
    budgets = [f"{compared.quality} under {percent(budget)}" for budget in BUDGETS]
    return ["variant", "studies", f"hypervolume over {words}", *budgets, "trials", "time"]


def cells(score: Score) -> list[str]:
    """A line of the table of scores."""
    budgets = [
        "none" if score.within[budget] is None else _said(score.within[budget])
        for budget in BUDGETS
    ]
    return [
        score.variant,
        str(len(score.studies)),
        _said(score.volume),
        *budgets,
        str(score.trials),
        duration(score.seconds),
    ]


def _said(value: tuple[float, float | None] | None) -> str:
    assert value is not None
    mean, spread = value
    return f"{mean:.4f}" if spread is None else mean_and_spread(mean, spread)


def _scores(compared: Compared) -> Section:
    explanation = (
        "The hypervolume is the area over the log of the cost between the confirmed front, on test "
        f"data, and {compared.quality} {compared.sign * compared.reference():g}; larger is better. "
        "Spreads are standard deviations over studies that differ in nothing but the seed: without "
        "at least two of them, a difference may be chance."
    )
    rows = [cells(score) for score in scores(compared)]
    table = PageTable("The variants, the largest volume first", header(compared), rows)
    studies = PageTable(
        "The studies", ["study", "variant", "dense", "models"], _listed(compared), folded=True
    )
    return Section("How they compare", explanation, [table, studies])


def _listed(compared: Compared) -> list[list[str]]:
    lines = []
    for view, variant in zip(compared.views, compared.variants, strict=True):
        dense = view.rows.dense
        quality = "" if dense is None else mean_and_spread(dense.test_mean, dense.test_std)
        lines.append([view.name, variant, quality, str(len(view.rows.front))])
    return lines


def _groups(compared: Compared) -> Section:
    explanation = (
        f"What each study's model nearest to {percent(GROUPS_AT)} of the FLOPs keeps of each "
        "group, in the order of the network. A row of one colour is a group that all treat alike."
    )
    records = []
    for index, view in enumerate(compared.views):
        row = _nearest(view)
        if row is None or row.name not in view.kept:
            continue
        for group in view.network.groups:
            records.append(
                {
                    "trial": f"{index}/{row.name}",
                    "study": view.name,
                    "group": group.name,
                    "kept": float(f"{view.kept[row.name].get(group.name, 1.0):.4g}"),
                    "ratio": row.ratios["flops"],
                }
            )
    return Section("What they prune", explanation, [Chart("groups", _map(compared, records))])


def _nearest(view: StudyView) -> ConfirmedRow | None:
    """The model nearest to the share of the FLOPs at which groups are compared, in octaves."""
    rows = [row for row in view.rows.front if row.ratios.get("flops")]
    if not rows:
        return None
    return min(rows, key=lambda row: abs(math.log(row.ratios["flops"] / GROUPS_AT)))


def _map(compared: Compared, records: list[Record]) -> Record:
    groups = [group.name for group in compared.views[0].network.groups]
    return {
        "description": f"Map of {len(groups)} groups and {len(compared.views)} studies.",
        "width": "container",
        "height": STEP * len(groups),
        "data": {"values": records},
        "params": [picked_param()],
        "mark": {"type": "rect", "aria": False},
        "encoding": {
            "x": {
                "field": "study",
                "type": "nominal",
                "sort": [view.name for view in compared.views],
                "axis": {
                    "orient": "top",
                    "title": None,
                    "labelAngle": -40,
                    "labelExpr": END_OF_NAME,
                },
            },
            "y": group_axis(groups),
            "color": {
                "field": "kept",
                "type": "quantitative",
                "scale": {"scheme": "cividis", "domain": [0, 1]},
                "legend": {"orient": "bottom", "title": "kept", "format": ".0%"},
            },
            "tooltip": [
                {"field": "study"},
                {"field": "group"},
                {"field": "kept", "format": ".1%"},
                {"field": "ratio", "format": ".1%", "title": "FLOPs left"},
            ],
        },
    }
