"""The report page inside MLflow's viewer of artifacts, which shows it in a sandbox."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.report.page import write_page
from orchestrator.tracking import StudyResults
from orchestrator.tracking.database import make_whole
from orchestrator.tracking.mlflow import MlflowTracker
from tests.faults.mlflow_server import Server
from tests.orchestrator.chromium import Chromium
from tests.orchestrator.test_report_browser import CHARTS
from tests.orchestrator.test_report_page import view

CHROMIUM = shutil.which("chromium")
INSIDE = ("about:", "blob:", "data:")
"""What a page asks of nobody."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    make_whole(tmp_path / "server.db")
    running = Server(tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    assert CHROMIUM is not None
    opened = Chromium(CHROMIUM, tmp_path / "profile")
    yield opened
    opened.close()


def recorded(server: Server, page: Path) -> str:
    """The address of the page among the artifacts of a study."""
    tracker = MlflowTracker(server.uri, "pruning")
    tracker.open_study("small", {"study_id": "1", "quality": "accuracy"}, {})
    about = "[the report](file:report.html)"
    tracker.close_study(StudyResults(artifacts=[page], description=about))
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("pruning")
    (run,) = client.search_runs([experiment.experiment_id])
    link = re.search(r"\((#[^)]*report\.html[^)]*)\)", run.data.tags["mlflow.note.content"])
    assert link is not None
    return f"{server.uri}/{link[1]}"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.filterwarnings("ignore:The ..noload:DeprecationWarning")
def test_mlflow_shows_the_page_whole_and_silent(
    server: Server, browser: Chromium, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write_page(page, view(trials=60, groups=20, models=8))
    browser.open(recorded(server, page))
    frame = browser.waits_for("document.body?.dataset.drawn === 'yes'")
    assert frame in browser.frames, "the page is shown in a frame of its own"
    assert browser.value("document.querySelectorAll('svg.marks').length", frame) == CHARTS
    assert browser.value("document.querySelector('#choice code').textContent", frame) == (
        "job=export study.name=small select=max_quality select.max_flops_ratio=1"
    )
    lit = "document.querySelector('tr.lit').dataset.trial"
    browser.value(
        "document.querySelector('tr[data-trial=\"3\"]').dispatchEvent(new Event('focus'))", frame
    )
    assert browser.value(lit, frame) == "3"
    assert browser.complaints(frame) == []
    asked = [event["request"]["url"] for event in browser.said("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith((server.uri, *INSIDE))] == []
