"""What tracking is told by a job whose disk is full at the wrong moment."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from orchestrator import files
from orchestrator.__main__ import main
from orchestrator.results.rows import TrialRow, read_csv

TINY = [
    "made_up={}",
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=1",
    "phases.finetune.round_steps=2",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=1",
    "phases.confirm.baselines=[]",
    "search.chain.targets=2",
    "threads=1",
    "study.n_trials=3",
]


def recorded() -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}")
    runs = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
    return sorted(run.data.tags["trial_number"] for run in runs if "trial_number" in run.data.tags)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_study_cleanly_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def full(path: Path, content: str) -> None:
        if '"number": 1' in content:
            raise OSError(errno.ENOSPC, "No space left on device")
        files.write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.tracking.spool.write_atomic", full)
        assert main(TINY) == 2
    said = capsys.readouterr().err
    assert (
        "'runs/digits_small/spool' until they are sent; it cannot be used (No space left on device)"
        in said
    )
    assert "Traceback" not in said
    assert recorded() == ["0"]
    assert main(TINY) == 0
    assert recorded() == ["0", "1", "2"]
    assert [row.number for row in read_csv("runs/digits_small/trials.csv", TrialRow)] == [0, 1, 2]


def test_without_tracking_nothing_is_spooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "tracking=none", "study.n_trials=1"]) == 0
    assert not Path("runs/digits_small/spool").exists()


def test_an_error_of_the_study_is_told_though_its_end_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def broken(*_: Any) -> None:
        raise RuntimeError("the real error")

    monkeypatch.setattr("orchestrator.jobs.search.prepare", broken)
    monkeypatch.setattr("orchestrator.tracking.mlflow.MlflowTracker.close_study", None)
    assert main(TINY) == 1
    said = capsys.readouterr().err
    assert "the end of the study is not recorded" in said
    assert said.rstrip().endswith("RuntimeError: the real error")


def test_an_end_that_a_killed_run_did_not_record_is_recorded_by_the_same_command_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.jobs.search.end_of", killed)
        with pytest.raises(Killed):
            main(TINY)
    assert Path("runs/digits_small/summary.json").exists()
    for _ in range(2):
        assert main(TINY) == 0
        client = MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}")
        runs = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
        (parent,) = [run for run in runs if run.data.tags["kind"] == "study"]
        assert parent.info.status == "FINISHED"
        assert len(client.get_metric_history(parent.info.run_id, "hypervolume")) == 1
        assert "summary.json" in {entry.path for entry in client.list_artifacts(parent.info.run_id)}
