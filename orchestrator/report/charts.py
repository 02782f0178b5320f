"""The charts of the page as files, drawn without a browser by vl-convert."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.files import write_atomic
from orchestrator.report.page import finite
from orchestrator.report.sections import SECTIONS
from orchestrator.report.sections.parts import Chart, Record, picked_param
from orchestrator.report.view import StudyView
from orchestrator.results.choose import Front, max_quality

CHART_WIDTH = 760
"""Pixels; on the page a chart is as wide as its window."""
_CONFIG = {"background": "white", "view": {"stroke": None}, "font": "sans-serif"}
_SHARP = 2.0
"""Pixels of a PNG for one of the SVG."""


def can_draw() -> bool:
    """Whether the package that draws is installed."""
    return importlib.util.find_spec("vl_convert") is not None


def write_charts(folder: Path, view: StudyView) -> list[Path]:
    """Writes `<chart>.svg` and `<chart>.png` of each chart of the page.

    The model in colour is the one that stands so on the page at first. Errors: StorageError.
    """
    # the package takes a second to start
    import vl_convert

    picked = _picked(view)
    paths = []
    for chart in _charts(view):
        spec = json.dumps(finite(_still(chart.spec, picked)))
        # nothing may be fetched: all data stands in the spec
        svg = vl_convert.vegalite_to_svg(spec, config=_CONFIG, allowed_base_urls=[])
        files: dict[str, bytes | str] = {
            "svg": svg,
            "png": vl_convert.svg_to_png(svg, scale=_SHARP),
        }
        for ending, content in files.items():
            path = folder / f"{chart.name}.{ending}"
            write_atomic(path, content)
            paths.append(path)
    return paths


def _charts(view: StudyView) -> Iterator[Chart]:
    for section in SECTIONS:
        for part in section(view).parts:
            if isinstance(part, Chart):
                yield part


def _picked(view: StudyView) -> str | None:
    """The model that the page names at first: the best one, whatever it costs."""
    if view.rows.dense is None or not view.rows.front:
        return None
    return max_quality(Front(view.rows.front, view.rows.dense, view.quality, view.sign)).name


def _still(spec: Record, picked: str | None) -> Record:
    """The spec of a chart that nobody points at: with this model, and a width of its own."""
    params = [{**picked_param(), "value": picked}]
    for param in spec["params"]:
        if param != picked_param():
            params.append({name: value for name, value in param.items() if name != "bind"})
    return {**spec, "width": CHART_WIDTH, "params": params}
