"""What was pruned: each group of the network in each model of the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report import colours
from orchestrator.report.sections.errors import error_parts
from orchestrator.report.sections.parts import (
    Chart,
    Line,
    PageTable,
    Record,
    Section,
    SectionPart,
    picked_param,
)
from orchestrator.report.sections.requested import requested_parts
from orchestrator.report.view import Network, StudyView
from orchestrator.results.quantities import percent
from orchestrator.results.requested import Requested

_LABEL = 24
"""Most characters of a name beside a chart; the end of a name tells layers apart."""
_STEP = 15
"""Pixels of a row, in the mean where heights follow the MACs."""
_LEAST = 11
"""Least pixels of a row, which a label needs."""
_PICKED = "picked !== null && datum.trial === picked"


@dataclass(frozen=True)
class _Row:
    """One row of the map: a group, a layer that stays whole, or a tensor of single weights.

    `whole` is the reason why a layer stays whole, empty for what can be pruned.
    """

    name: str
    kind: str
    units: int | None = None
    macs_share: float | None = None
    whole: str = ""


def pruned_section(view: StudyView) -> Section:
    """A map of groups and models, the model that is picked group by group, and both as a table."""
    explanation = (
        "Each row is a group of coupled layers in the order of the network, each column a model of "
        "the front from large to small; the colour says how much of the group is kept, and a row "
        "is as high as its share of the MACs, but never too low to be read. A cross marks a whole "
        "block that is gone; a grey row is a layer that stays whole, and says why. Below it: the "
        "units that the model that you point at keeps of each group, within the outline of the "
        "dense network; a short line stands where another number was asked for."
    )
    rows = _rows(view)
    if not rows or not view.kept:
        missing = "No model is confirmed yet, or an earlier version made the study."
        return Section("What was pruned", explanation, [Line(missing)])
    records = _records(view, rows)
    parts: list[SectionPart] = [Chart("kept", _map(view, rows, records))]
    counted = [record for record in records if record["units"] and record["kind"] != "block"]
    if counted:
        parts.append(Chart("units", _outline(view, counted)))
    parts += error_parts(view, _models(view))
    prunable = [row for row in rows if not row.whole]
    parts.append(_groups_table(view, prunable))
    parts += requested_parts(view, _models(view))
    if view.network.skipped:
        parts.append(_skipped_table(view))
    return Section("What was pruned", explanation, parts)


def _rows(view: StudyView) -> list[_Row]:
    """Groups and whole layers in network order, then tensors of which some model keeps a part."""
    network = view.network
    rows = []
    for place, group in enumerate(network.groups):
        rows += _whole_rows(network, place)
        rows.append(_Row(group.name, group.kind, group.units, group.macs_share))
    rows += _whole_rows(network, len(network.groups))
    named = {row.name for row in rows}
    tensors = dict.fromkeys([name for kept in view.kept.values() for name in kept])
    rows += [_Row(name, "weights") for name in tensors if name not in named]
    return rows


def _whole_rows(network: Network, place: int) -> list[_Row]:
    """The layers that stay whole, and stand right behind so many groups."""
    groups = {group.name for group in network.groups}
    rows = []
    for name, before in network.before.items():
        # a layer that stays whole in part is a group as well
        if before == place and name not in groups:
            rows.append(_Row(name, "whole", whole=network.skipped[name]))
    return rows


def _models(view: StudyView) -> list[str]:
    """The names of the front's models whose plans are known, from large to small."""
    front = sorted(view.rows.front, key=lambda row: -row.cost)
    return [row.name for row in front if row.name in view.kept]


def _records(view: StudyView, rows: Sequence[_Row]) -> list[Record]:
    records = []
    places = _places(rows)
    for trial in _models(view):
        requested = view.requested.get(trial, Requested())
        for row, (top, bottom) in zip(rows, places, strict=True):
            kept = view.kept[trial].get(row.name, 1.0)
            record: Record = {
                "trial": trial,
                "group": row.name,
                "kind": row.kind,
                "kept": float(f"{kept:.4g}"),
                "share": row.macs_share,
                "units": row.units,
                "left": None if row.units is None else round(kept * row.units),
                "top": top,
                "bottom": bottom,
            }
            if row.whole:
                record["why"] = row.whole
            if row.name in requested.otherwise:
                record["asked"] = requested.units[row.name]
                record["why"] = requested.otherwise[row.name]
            records.append(record)
    return records


def _places(rows: Sequence[_Row]) -> list[tuple[float, float]]:
    """The top and bottom of each row, in pixels: heights are shares of the MACs, or the least."""
    shares = [row.macs_share or 0.0 for row in rows]
    room = _STEP * len(rows) / (sum(shares) or 1.0)
    places = []
    top = 0.0
    for share in shares:
        bottom = round(top + max(_LEAST, room * share), 1)
        places.append((top, bottom))
        top = bottom
    return places


def _places_axis(rows: Sequence[_Row]) -> Record:
    """The same as an axis, with the name of each row at its middle."""
    places = _places(rows)
    return {
        "field": "top",
        "type": "quantitative",
        "scale": {"domain": [0, places[-1][1]], "reverse": True, "nice": False},
        "axis": {
            "values": _middles(rows),
            "labelExpr": "names[indexof(middles, datum.value)]",
            "labelOverlap": False,
            "labelFontSize": 10,
            "labelLimit": 200,
            "title": None,
            "grid": False,
            "ticks": False,
        },
    }


def _middles(rows: Sequence[_Row]) -> list[float]:
    return [round((top + bottom) / 2, 2) for top, bottom in _places(rows)]


def _shortened(name: str) -> str:
    return name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"


def group_axis(rows: Sequence[str]) -> Record:
    """An axis of groups in this order, with names that are cut at their beginning."""
    short = f"'…' + slice(datum.label, -{_LABEL - 1})"
    label = f"length(datum.label) > {_LABEL} ? {short} : datum.label"
    return {
        "field": "group",
        "type": "nominal",
        "sort": list(rows),
        "axis": {"labelExpr": label, "title": None, "labelLimit": 200},
    }


def _tooltip() -> list[dict[str, str]]:
    return [
        {"field": "group"},
        {"field": "kind"},
        {"field": "trial", "title": "model"},
        {"field": "kept", "format": ".1%"},
        {"field": "left", "title": "units left"},
        {"field": "asked", "title": "units asked for"},
        {"field": "why"},
        {"field": "units", "title": "units of the dense network"},
        {"field": "share", "format": ".1%", "title": "share of the MACs"},
    ]


def _map(view: StudyView, rows: Sequence[_Row], records: list[Record]) -> Record:
    models = _models(view)
    return {
        "description": (
            f"Map of {len(rows)} groups and layers and {len(models)} models of the study "
            f"{view.name}; the colour is the share that is kept, grey what cannot be pruned. The "
            "tables below say it in numbers."
        ),
        "width": "container",
        "height": _places(rows)[-1][1],
        "data": {"values": records},
        "params": [
            picked_param(),
            {"name": "names", "value": [_shortened(row.name) for row in rows]},
            {"name": "middles", "value": _middles(rows)},
        ],
        "encoding": {
            "x": {
                "field": "trial",
                "type": "ordinal",
                "sort": models,
                "axis": {"labelAngle": 0, "orient": "top", "title": "model, from large to small"},
            },
            "y": _places_axis(rows),
            "tooltip": _tooltip(),
        },
        "layer": [_cells(), _whole_cells(), _crosses()],
    }


def _cells() -> Record:
    line = {"condition": {"test": _PICKED, "value": 2}, "value": 0}
    return {
        "name": "cells",
        "transform": [{"filter": "datum.kind !== 'whole'"}],
        "mark": {"type": "rect", "stroke": colours.BASELINE_COLOURS[0], "aria": False},
        "encoding": {"y2": {"field": "bottom"}, "color": _colour(), "strokeWidth": line},
    }


def _whole_cells() -> Record:
    """Rows of layers that stay whole, paler than the grey in the middle of the colours."""
    return {
        "name": "whole",
        "transform": [{"filter": "datum.kind === 'whole'"}],
        "mark": {"type": "rect", "color": colours.TRIAL, "opacity": 0.25, "aria": False},
        "encoding": {"y2": {"field": "bottom"}},
    }


def _crosses() -> Record:
    return {
        "name": "gone",
        "transform": [
            {"filter": "datum.kind === 'block' && datum.kept === 0"},
            {"calculate": "(datum.top + datum.bottom) / 2", "as": "middle"},
        ],
        "mark": {"type": "text", "text": "\u00d7", "fontSize": 13, "fontWeight": "bold"},
        "encoding": {"y": {"field": "middle"}, "color": {"value": "#FFFFFF"}},
    }


def _colour() -> Record:
    return {
        "field": "kept",
        "type": "quantitative",
        "scale": {"scheme": "cividis", "domain": [0, 1]},
        "legend": {"orient": "bottom", "title": "kept", "format": ".0%", "gradientLength": 160},
    }


def _outline(view: StudyView, records: list[Record]) -> Record:
    names = list(dict.fromkeys([record["group"] for record in records]))
    units = {
        "type": "quantitative",
        "title": "units",
        "stack": None,
        "scale": {"domain": [0, max([record["units"] for record in records])]},
    }
    return {
        "description": (
            f"Bars: the units of each group that one model of the study {view.name} keeps, within "
            "the outline of the dense network."
        ),
        "width": "container",
        "height": _STEP * len(names),
        "data": {"values": records},
        "params": [picked_param()],
        "encoding": {"y": group_axis(names), "tooltip": _tooltip()},
        "layer": [
            {
                "name": "whole",
                "transform": [{"filter": f"datum.trial === '{_models(view)[0]}'"}],
                "mark": {"type": "bar", "filled": False, "stroke": colours.TRIAL, "strokeWidth": 1},
                "encoding": {"x": {"field": "units", **units}},
            },
            {
                "name": "left",
                "transform": [{"filter": _PICKED}],
                "mark": {"type": "bar", "color": colours.FRONT_COLOUR},
                "encoding": {"x": {"field": "left", **units}},
            },
            {
                "name": "asked",
                "transform": [{"filter": f"{_PICKED} && isValid(datum.asked)"}],
                "mark": {"type": "tick", "color": colours.BASELINE_COLOURS[0], "thickness": 2},
                "encoding": {"x": {"field": "asked", **units}},
            },
        ],
    }


def _groups_table(view: StudyView, rows: Sequence[_Row]) -> PageTable:
    models = _models(view)
    free = view.summary.get("free", {})
    header = ["group", "kind", "units", "share of MACs"]
    if free:
        header.append("free to go")
    header += [f"trial {name}" if name.isdigit() else name for name in models]
    cells = []
    for row in rows:
        units = "" if row.units is None else str(row.units)
        share = "" if row.macs_share is None else percent(row.macs_share)
        line = [row.name, row.kind, units, share]
        if free:
            line.append(percent(free[row.name]) if row.name in free else "")
        line += [percent(view.kept[trial].get(row.name, 1.0)) for trial in models]
        cells.append(line)
    caption = f"The {len(rows)} groups, and what each model keeps of them"
    return PageTable(caption, header, cells, folded=True)


def _skipped_table(view: StudyView) -> PageTable:
    skipped = [[name, reason] for name, reason in view.network.skipped.items()]
    return PageTable("What stays whole, and why", ["layer", "reason"], skipped, folded=True)
