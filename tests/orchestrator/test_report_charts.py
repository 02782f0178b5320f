"""The charts of the page as files, without a browser."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from orchestrator.__main__ import main
from orchestrator.report.charts import write_charts
from orchestrator.report.view import StudyView
from orchestrator.results.rows import Rows, TrialRow, write_csv
from tests.orchestrator.test_report_page import confirmed, view

REPORT = ["+experiment=digits_small", "job=report", "study.name=small"]


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The specs that are drawn, by a module that stands in for the package."""
    drawn: list[dict[str, Any]] = []

    def vegalite_to_svg(spec: str, config: dict[str, Any], allowed_base_urls: list[str]) -> str:
        assert allowed_base_urls == []
        drawn.append(json.loads(spec))
        return "<svg/>"

    module = ModuleType("vl_convert")
    png = {"svg_to_png": lambda svg, scale: b"png"}
    vars(module).update(png, vegalite_to_svg=vegalite_to_svg)
    monkeypatch.setitem(sys.modules, "vl_convert", module)
    return drawn


def test_every_chart_is_drawn_with_the_model_that_the_page_names_first(
    tmp_path: Path, specs: list[dict[str, Any]]
) -> None:
    paths = write_charts(tmp_path, view())
    names = [path.name for path in paths]
    assert names[:2] == ["front.svg", "front.png"]
    assert {"kept.svg", "units.png", "who-pays.svg", "volume.png"} <= set(names)
    assert {path.read_bytes() for path in paths} == {b"<svg/>", b"png"}
    for spec in specs:
        picked = [param["value"] for param in spec["params"] if param["name"] == "picked"]
        assert picked == ["0"]
        assert isinstance(spec["width"], int)
        assert "bind" not in json.dumps(spec["params"])


@pytest.mark.parametrize("rows", [Rows(view().rows.trials), replace(view().rows, front=())])
def test_without_a_front_no_model_stands_out(
    rows: Rows, tmp_path: Path, specs: list[dict[str, Any]]
) -> None:
    write_charts(tmp_path, replace(view(), rows=rows))
    assert {"name": "picked", "value": None} in specs[0]["params"]


def test_the_job_writes_them_where_the_package_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    specs: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv("runs/small/trials.csv", view().rows.trials, TrialRow)
    for installed in (False, True):
        monkeypatch.setattr("orchestrator.jobs.report.can_draw", lambda there=installed: there)
        assert main(REPORT) == 0
        assert Path("runs/small/pictures/front.svg").exists() == installed
    assert "its charts: runs/small/pictures/front.svg" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="needs vl-convert")
def test_the_package_itself_draws_them(tmp_path: Path) -> None:
    nan = replace(confirmed("uniform", 1, 0.4), test_std=math.nan)
    shown: StudyView = replace(view(), rows=replace(view().rows, baselines=[nan]))
    for path in write_charts(tmp_path, shown):
        content = path.read_bytes()
        assert content.startswith(b"<svg" if path.suffix == ".svg" else b"\x89PNG")
        assert len(content) > 2000
