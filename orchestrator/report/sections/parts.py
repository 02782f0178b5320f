"""What a section of the page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite spec as a plain dict; `name` is its own on the page, in letters and hyphens.

    Its data has the name of a model under `trial`, and its marks look at the param `picked`, so
    that a model that is pointed at lights up in every chart.
    """

    name: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class PageTable:
    """Cells are text. `trials` are the names of the models, where rows are of models.

    A `folded` one opens when its caption is clicked.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    trials: Sequence[str | None] = ()
    folded: bool = False


@dataclass(frozen=True)
class Line:
    """A line of text, and a command behind it.

    The script of the page may write another one into the element `name`.
    """

    text: str
    name: str = ""
    command: str = ""


Record = dict[str, Any]
"""A row of data of a chart, or a part of its specification."""
SectionPart = Chart | PageTable | Line


@dataclass(frozen=True)
class Section:
    """One section: its `title`, a sentence that says how to read it, and what it shows."""

    title: str
    explanation: str
    parts: Sequence[SectionPart]


def picked_param() -> dict[str, Any]:
    """The param that every chart has: the name of the model that is pointed at."""
    return {"name": "picked", "value": None}
