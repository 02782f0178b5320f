"""Who pays: the change of each class, or metric, of a confirmed model against the dense one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report import colours
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
from orchestrator.results.quantities import percent
from orchestrator.results.rows import ConfirmedRow
from orchestrator.results.who_pays import CLASS, METRIC, Change, SeedResults, changes_of

MOST = 30
"""Classes that are drawn: those that lose most."""
_ROUNDED = 5e-5
"""A loss that is smaller is written as none."""
_STEP = 17
"""Pixels of a row."""
_PICKED = "picked !== null && datum.trial === picked"
_DENSE = "dense"
_TITLE = "Who pays"


@dataclass(frozen=True)
class _Bill:
    """Models from large to small, and the changes of each by its name, the greatest loss first.

    `what` is what the changes are of: class or metric.
    """

    what: str
    models: Sequence[ConfirmedRow]
    changes: Mapping[str, Sequence[Change]]

    def words(self, change: Change) -> str:
        return change.words(self.what)

    def names(self) -> list[str]:
        """All classes or metrics, those first that lose most over the models."""
        changes: dict[str, list[float]] = {}
        for row in self.models:
            for change in self.changes[row.name]:
                changes.setdefault(change.name, []).append(change.change)
        return sorted(changes, key=lambda name: statistics.fmean(changes[name]))


def who_pays_section(view: StudyView) -> Section:
    """The changes as a chart, the worst one in words, and both as tables."""
    bill = _bill(view)
    if not bill.models:
        missing = "No model is confirmed yet, or an earlier version made the study."
        return Section(_TITLE, "What a smaller model costs, class by class.", [Line(missing)])
    names = bill.names()
    parts: list[SectionPart] = [Line(_worst_in_words(bill))]
    if len(names) > MOST:
        parts.append(Line(f"The {MOST} of {len(names)} {_many(bill)} that lose most are shown."))
    shown = names[:MOST]
    parts += [Chart("who-pays", _spec(view, bill, shown)), _models_table(bill)]
    parts.append(_changes_table(bill, shown))
    return Section(_TITLE, _explanation(bill), parts)


def _explanation(bill: _Bill) -> str:
    change = {
        CLASS: "how much less (or more) of each class it recognises",
        METRIC: "how much worse (or better) each metric of the task is, as a share of the dense "
        "model's value; the task tells nothing of its classes",
    }
    return (
        "A smaller model rarely loses evenly. Each row has the models of the front on test data "
        f"against the dense model: {change[bill.what]}. Bars are one standard deviation of the "
        "difference over the seeds. What loses most stands first."
    )


def _many(bill: _Bill) -> str:
    return "classes" if bill.what == CLASS else "metrics"


def _bill(view: StudyView) -> _Bill:
    """The models of the front with their changes."""
    models = [row for row in view.rows.front if row.name in view.tested]
    models.sort(key=lambda row: -row.cost)
    dense = view.tested.get(_DENSE, SeedResults())
    tested = {row.name: view.tested[row.name] for row in models}
    what, changes = changes_of(tested, dense, view.signs)
    return _Bill(what, [row for row in models if row.name in changes], changes)


def _worst_in_words(bill: _Bill) -> str:
    """Who loses most in how many models, and the greatest loss of all."""
    worst = {row.name: bill.changes[row.name][0] for row in bill.models}
    often, times = Counter([change.name for change in worst.values()]).most_common(1)[0]
    deepest = min(bill.models, key=lambda row: worst[row.name].change)
    change = worst[deepest.name]
    if change.change > -_ROUNDED:
        return f"No {bill.what} is worse than the dense model's in any of these models."
    said = f"{bill.what.capitalize()} {often} loses most in {times} of {len(bill.models)} models."
    within = ", which is within its spread" if -change.change <= change.spread else ""
    return (
        f"{said} The greatest loss is that of {bill.what} {change.name} in {deepest.words}: "
        f"{bill.words(change)}{within}."
    )


def _records(bill: _Bill, shown: Sequence[str]) -> list[Record]:
    records = []
    for row in bill.models:
        for change in bill.changes[row.name]:
            if change.name not in shown:
                continue
            record: Record = {
                "trial": row.name,
                "model": row.words,
                "name": change.name,
                "change": round(change.change, 5),
                "low": round(change.change - change.spread, 5),
                "high": round(change.change + change.spread, 5),
                "said": bill.words(change),
                "dense": round(change.dense, 5),
            }
            records.append(record)
    return records


def _spec(view: StudyView, bill: _Bill, shown: Sequence[str]) -> Record:
    form = {} if bill.what == CLASS else {"format": "+.2~%"}
    change = {
        "field": "change",
        "type": "quantitative",
        "title": "change against the dense model; right is better",
        "axis": form,
    }
    name = {"field": "name", "type": "nominal", "sort": list(shown), "title": bill.what}
    return {
        "description": (
            f"Dots: the change of {len(shown)} {_many(bill)} of the models of the study "
            f"{view.name} against the dense model. The tables below say it in numbers."
        ),
        "width": "container",
        "height": _STEP * len(shown),
        "params": [picked_param()],
        "layer": [
            {
                "name": "dense-rule",
                "data": {"values": [{"change": 0}]},
                "mark": {"type": "rule", "strokeDash": [8, 4], "aria": False},
                "encoding": {"x": change},
            },
            {
                "data": {"values": _records(bill, shown)},
                "encoding": {"y": name, "x": change},
                "layer": _marks(bill),
            },
        ],
    }


def _marks(bill: _Bill) -> list[Record]:
    """All models faintly, and the one that is picked with its spread."""
    picked = [{"filter": _PICKED}]
    colour = colours.FRONT_COLOUR
    return [
        {
            "name": "changes",
            "mark": {"type": "point", "filled": True, "size": 40, "aria": False},
            "encoding": {
                "color": {"value": colours.TRIAL},
                "opacity": {"condition": {"test": _PICKED, "value": 0.0}, "value": 0.45},
                "tooltip": _tooltip(bill),
            },
        },
        {
            "name": "interval",
            "transform": picked,
            "mark": {"type": "rule", "color": colour, "strokeWidth": 1.6, "aria": False},
            "encoding": {"x": {"field": "low"}, "x2": {"field": "high"}},
        },
        {
            "name": "picked-changes",
            "transform": picked,
            "mark": {"type": "point", "filled": True, "color": colour, "size": 80, "aria": False},
            "encoding": {"tooltip": _tooltip(bill)},
        },
    ]


def _tooltip(bill: _Bill) -> list[Record]:
    return [
        {"field": "model"},
        {"field": "name", "title": bill.what},
        {"field": "said", "title": "change"},
        {"field": "dense", "title": "dense model"},
    ]


def _models_table(bill: _Bill) -> PageTable:
    """Of each model who loses most, and who gains most or loses least."""
    cells = []
    for row in bill.models:
        worst = bill.changes[row.name][0]
        best = bill.changes[row.name][-1]
        line = [row.words, percent(row.cost_ratio), worst.name, bill.words(worst)]
        if worst.change > -_ROUNDED:
            line[2] = "none"
        cells.append([*line, best.name, bill.words(best)])
    header = ["model", "cost", "pays most", "change", "pays least", "change"]
    caption = f"Of each model the {bill.what} that pays most, and the one that pays least"
    return PageTable(caption, header, cells, trials=[row.name for row in bill.models])


def _changes_table(bill: _Bill, shown: Sequence[str]) -> PageTable:
    by_model = []
    for row in bill.models:
        by_model.append({change.name: change for change in bill.changes[row.name]})
    cells = []
    for name in shown:
        changes = [changes.get(name) for changes in by_model]
        cells.append([name, *["" if one is None else bill.words(one) for one in changes]])
    header = [bill.what, *[row.words for row in bill.models]]
    return PageTable("The change in each model", header, cells, folded=True)
