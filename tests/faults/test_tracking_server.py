"""A real MLflow server that dies under a study: the study goes on, and every trial is recorded
once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import main
from orchestrator.jobs import explore
from orchestrator.results.rows import TrialRow, read_csv
from orchestrator.tracking.mlflow import MlflowTracker
from tests.faults.mlflow_server import Server

pytestmark = pytest.mark.slow

TINY = [
    "made_up={}",
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=2",
    "phases.finetune.round_steps=4",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "phases.confirm.baselines=[]",
    "search.chain.targets=3",
    "threads=1",
    "study.n_trials=6",
]
NUMBERS = ["0", "1", "2", "3", "4", "5"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server").mkdir()
    found = Server(tmp_path / "server")
    try:
        found.start()
        yield found
    finally:
        found.kill()


def check_all_is_recorded(server: Server) -> None:
    """Each trial once, whole and in order, and the study with its results."""
    from mlflow import MlflowClient

    assert server.trials() == [(number, "FINISHED") for number in NUMBERS]
    client = MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
    children = {
        run.data.tags["trial_number"]: run for run in runs if "trial_number" in run.data.tags
    }
    (parent,) = [run for run in runs if run.data.tags["kind"] == "study"]
    for row in read_csv("runs/digits_small/trials.csv", TrialRow):
        run = children[str(row.number)]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["state"] == row.state
        assert run.data.metrics["flops_ratio"] == pytest.approx(row.ratios["flops"], rel=1e-4)
        assert run.data.metrics["quality"] == pytest.approx(row.quality, rel=1e-4)
        history = client.get_metric_history(run.info.run_id, "val_loss")
        assert [point.step for point in history] == list(range(1, row.rung + 1))
        assert {"plan.json", "groups.json"} <= {
            entry.path for entry in client.list_artifacts(run.info.run_id)
        }
    assert parent.info.status == "FINISHED"
    assert len(client.get_metric_history(parent.info.run_id, "hypervolume")) == 1
    names = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {"pareto.png", "front.csv", "summary.json"} <= names


def waiting() -> int:
    return len(list(Path("runs/digits_small/spool").glob("[0-9]*.json")))


def test_a_server_that_dies_half_way_in_a_record_and_comes_back(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send, record, most = MlflowTracker._send, explore.record_trial, []

    def send_or_die(self: MlflowTracker, run_id: str, made: Any, at: float | None = None) -> None:
        if made.tags.get("kind") == "trial" and len(server.trials()) == 3 and not most:
            server.kill()  # the run of trial 2 has been created and is empty
        send(self, run_id, made, at)

    def record_and_restart(tracker: Any, settings: Any, structure: Any, trial: Any) -> None:
        if trial.number == 4:
            most.append(waiting())
            server.start()
        record(tracker, settings, structure, trial)

    monkeypatch.setattr(MlflowTracker, "_send", send_or_die)
    monkeypatch.setattr(explore, "record_trial", record_and_restart)
    assert main([*TINY, f"tracking.uri={server.uri}"]) == 0
    said = capsys.readouterr().err
    assert most == [2]
    assert said.count("the study goes on, its records wait in") == 1
    assert said.count("the server answers again, records sent: ") == 1
    assert waiting() == 0
    check_all_is_recorded(server)


def test_a_server_that_stays_away_gets_everything_from_the_same_command_later(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, f"tracking.uri={server.uri}"]
    record = explore.record_trial

    def kill_and_record(tracker: Any, settings: Any, structure: Any, trial: Any) -> None:
        server.kill()
        record(tracker, settings, structure, trial)

    monkeypatch.setattr(explore, "record_trial", kill_and_record)
    assert main(command) == 0
    captured = capsys.readouterr()
    assert (
        "records that wait in 'runs/digits_small/spool': 7; the same command sends them"
        in captured.err
    )
    assert "tracking" in captured.out
    assert len(read_csv("runs/digits_small/trials.csv", TrialRow)) == 6

    begun = time.perf_counter()
    assert main(command) == 0
    assert time.perf_counter() - begun < 30
    assert (
        "wait in 'runs/digits_small/spool': 7; the same command sends them"
        in capsys.readouterr().err
    )

    server.start()
    assert main(command) == 0
    assert "the server answers again, records sent: 7" in capsys.readouterr().err
    check_all_is_recorded(server)
    assert main(command) == 0
    assert "tracking: " not in capsys.readouterr().err

    server.kill()
    begun = time.perf_counter()
    assert main([*command, "study.name=new"]) == 2
    assert time.perf_counter() - begun < 30
    assert "tracking.uri" in capsys.readouterr().err
