"""Two processes of one study that share a database and an MLflow server, and no folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import orchestrator
from tests.faults.mlflow_server import Server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRIALS = 16
SMALL = [
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=2",
    "phases.finetune.round_steps=60",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=3",
    "phases.confirm.baselines=[]",
    "search.chain.targets=3",
    "threads=1",
    "stopping=never",
    f"study.n_trials={TRIALS}",
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


def begun(folder: Path, *words: str) -> subprocess.Popen[str]:
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *SMALL, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_plans_travel_as_artifacts(server: Server, tmp_path: Path) -> None:
    place = [
        f"study.storage=sqlite:///{tmp_path / 'study.db'}",
        "study.results=mlflow",
        f"tracking.uri={server.uri}",
    ]
    searching = begun(tmp_path / "a", *place)
    assert searching.stderr is not None
    before = []
    for line in searching.stderr:
        before.append(line)
        if "search:" in line:
            break
    helping = begun(tmp_path / "b", *place, "job=work", "job.name=b")
    _, rest = searching.communicate(timeout=300)
    _, helped = helping.communicate(timeout=120)
    assert searching.returncode == 0, "".join(before) + rest
    assert helping.returncode == 0, helped
    theirs = [
        line.split()[1]
        for line in helped.splitlines()
        if line.startswith("trial ") and "completed" in line
    ]
    assert theirs, helped
    here, there = (tmp_path / name / "runs" / "digits_small" for name in ("a", "b"))
    for number in theirs:  # made there, fetched by the process that confirms the front
        weights = (there / "trials" / number / "weights.safetensors").read_bytes()
        assert (here / "trials" / number / "weights.safetensors").read_bytes() == weights
    for model in (here / "models").iterdir():
        orchestrator.load_pruned(model)
    assert not (there / "models").exists()
