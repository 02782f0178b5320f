"""The report page: one HTML file that asks nothing of anybody."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from orchestrator.costs import COSTS, ratio_name
from orchestrator.files import write_atomic
from orchestrator.report.sections import SECTIONS
from orchestrator.report.sections.parts import Chart, PageTable, Section, SectionPart
from orchestrator.report.view import StudyView
from orchestrator.results.quantities import axis_words

_HERE = Path(__file__).parent
OPTIONS_OF_SELECT = ("flops", "params")
"""Costs whose ratio conf/select/max_quality.yaml names; a limit on another one takes a plus."""
_LIBRARIES = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")


def write_page(path: str | Path, view: StudyView) -> None:
    """Writes the page of a study. Errors: StorageError."""
    write_atomic(path, page(view))


def page(view: StudyView) -> str:
    """The page as HTML; its scripts and styles are part of it.

    Its content security policy forbids every request. All that comes from the study is escaped:
    names of groups and metrics are a user's.
    """
    sections = [section(view) for section in SECTIONS]
    return html(view.name, sections, view.quality, view.sign)


def html(title: str, sections: Sequence[Section], quality: str, sign: float) -> str:
    """These sections as one page; see `page`."""
    charts: dict[str, Any] = {}
    for section in sections:
        for part in section.parts:
            if isinstance(part, Chart):
                charts[part.name] = part.spec
    data = {
        "study": title,
        "sign": sign,
        "quality": quality,
        "costs": {cost: _cost(cost) for cost in COSTS},
        "charts": charts,
    }
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        style=_asset("page.css"),
        sections="\n".join([_section(section) for section in sections]),
        data=_json(data),
        libraries="\n".join([f"<script>{_library(name)}</script>" for name in _LIBRARIES]),
        script=_asset("page.js"),
    )


def _cost(cost: str) -> dict[str, str]:
    """How a cost is called, and the option that limits its ratio."""
    plus = "" if cost in OPTIONS_OF_SELECT else "+"
    return {"words": axis_words(cost), "limit": f"{plus}select.max_{ratio_name(cost)}"}


@cache
def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


@cache
def _library(name: str) -> str:
    return (_HERE / "vendored" / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that cannot end the script element around it; numbers that are none are null."""
    text = json.dumps(finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(data: Any) -> Any:
    """The same data with None in the place of numbers that are none."""
    if isinstance(data, dict):
        return {name: finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _section(section: Section) -> str:
    parts = "\n".join([_part(part) for part in section.parts])
    return (
        f"<section>\n<h2>{escape(section.title)}</h2>\n<p>{escape(section.explanation)}</p>\n"
        f"{parts}\n</section>"
    )


def _part(part: SectionPart) -> str:
    if isinstance(part, Chart):
        return f'<div class="chart" id="chart-{escape(part.name)}"></div>'
    if isinstance(part, PageTable):
        return _table(part)
    name = f' id="{escape(part.name)}" aria-live="polite"' if part.name else ""
    command = f" <code>{escape(part.command)}</code>" if part.command else ""
    return f"<p{name}>{escape(part.text)}{command}</p>"


def _table(table: PageTable) -> str:
    head = "".join([f'<th scope="col">{escape(name)}</th>' for name in table.header])
    body = []
    for index, cells in enumerate(table.rows):
        trial = table.trials[index] if table.trials else None
        # rows of models can be reached by keyboard, as they light up in the charts
        known = "" if trial is None else f' data-trial="{escape(trial)}" tabindex="0"'
        body.append(f"<tr{known}>{_cells(cells)}</tr>")
    rows = "\n".join(body)
    caption = escape(table.caption)
    if not table.folded:
        return _scrolled(f"<caption>{caption}</caption>", head, rows)
    return f"<details><summary>{caption}</summary>{_scrolled('', head, rows)}</details>"


def _scrolled(caption: str, head: str, rows: str) -> str:
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cells(cells: Sequence[str]) -> str:
    first, *others = cells
    rest = "".join([f"<td>{escape(cell)}</td>" for cell in others])
    return f'<th scope="row">{escape(first)}</th>{rest}'
