"""Two processes of one study that share a database and an MLflow server, and no folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import orchestrator
from tests.faults.mlflow_server import Server
from tests.faults.tiny import run

pytestmark = pytest.mark.slow

SMALL = [
    "made_up={seconds: 0.01}",
    "phases.finetune.round_steps=60",
    "phases.confirm.max_models=3",
    "phases.confirm.baselines=[]",
    "stopping=never",
    "study.n_trials=16",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    found = Server(tmp_path / "server")
    try:
        found.start()
        yield found
    finally:
        found.kill()


def test_plans_travel_as_artifacts(server: Server, tmp_path: Path) -> None:
    place = [
        *SMALL,
        f"study.storage=sqlite:///{tmp_path / 'study.db'}",
        "study.results=mlflow",
        "tracking=mlflow",
        f"tracking.uri={server.uri}",
    ]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with run(tmp_path / "a", *place) as searching:
        assert searching.says("search:"), searching.text
        with run(tmp_path / "b", *place, "job=work", "job.name=b") as helping:
            assert searching.ends(300.0) == 0, searching.text
            assert helping.ends() == 0, helping.text
    theirs = [
        line.split()[1]
        for line in helping.lines
        if line.startswith("trial ") and "completed" in line
    ]
    assert theirs, helping.text
    here, there = (tmp_path / name / "runs" / "tiny" for name in ("a", "b"))
    for number in theirs:  # made there, fetched by the process that confirms the front
        weights = (there / "trials" / number / "weights.safetensors").read_bytes()
        assert (here / "trials" / number / "weights.safetensors").read_bytes() == weights
    for model in (here / "models").iterdir():
        orchestrator.load_pruned(model)
    assert not (there / "models").exists()
