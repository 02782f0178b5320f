"""Weights & Biases: what is written stands there once; the package itself where it is installed."""

from __future__ import annotations

import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lightning_modules.errors import ConfigError
from orchestrator.__main__ import main
from orchestrator.tracking import ModelRecord, Point, StudyResults, TrackerError, TrialRecord
from orchestrator.tracking.several import SeveralTrackers
from orchestrator.tracking.wandb import WandbTracker

TRIAL = TrialRecord(
    3,
    "completed",
    {"target_flops_ratio": 0.25, "api_key": "hush"},
    {"method": "l1"},
    {"quality": 0.9, "loss": math.nan},
    [Point("quality", 2, 0.9), Point("quality", 1, 0.8), Point("val_loss", 1, 0.3)],
    title="003 l1 25% of FLOPs",
)


def results(file: Path) -> StudyResults:
    file.write_text("number\n3\n")
    return StudyResults(
        {"hypervolume": 0.4},
        [file],
        [ModelRecord("3", "", {"on_front": "true"}, {}, {"test_accuracy": 0.88})],
        table={"model": ["trial 3"], "test": [0.88]},
    )


class Run:
    """What a run of W&B is told."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said
        self.logged: list[Any] = []
        self.summary: dict[str, float] = {}
        self.artifacts: list[Any] = []
        self.exit: int | None = None

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, values))

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int = 0) -> None:
        self.exit = exit_code


class Artifact(SimpleNamespace):
    def __init__(self, name: str, type: str) -> None:
        super().__init__(name=name, type=type, files=[])

    def add_file(self, path: str) -> None:
        self.files.append(path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are begun, in a module that stands in for the package."""
    begun: list[Run] = []

    def init(**said: Any) -> Run:
        begun.append(Run(said))
        return begun[-1]

    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="stand-in")
    parts = {"init": init, "Settings": dict, "Table": dict, "Artifact": Artifact}
    vars(module).update(parts, errors=SimpleNamespace(Error=type("Error", (Exception,), {})))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun


def recorded(folder: Path, identity: str = "one") -> WandbTracker:
    tracker = WandbTracker(folder=str(folder))
    tracker.open_study("small", {"study_id": identity}, {"seed": 0})
    tracker.trial(TRIAL)
    tracker.close_study(results(folder / "trials.csv"))
    return tracker


def test_a_study_is_a_group_of_runs(tmp_path: Path, runs: list[Run]) -> None:
    tracker = recorded(tmp_path)
    trial, tested, study = runs
    assert {run.said["group"] for run in runs} == {"small"}
    assert {run.said["mode"] for run in runs} == {"offline"}
    assert trial.said["name"] == "003 l1 25% of FLOPs"
    assert trial.said["config"]["api_key"] == "***"
    assert trial.logged == [(1, {"quality": 0.8, "val_loss": 0.3}), (2, {"quality": 0.9})]
    assert trial.summary == {"quality": 0.9}
    assert tested.summary == {"test_accuracy": 0.88}
    assert study.logged == [
        (None, {"front": {"columns": ["model", "test"], "data": [["trial 3", 0.88]]}})
    ]
    assert study.artifacts[0].files == [str(tmp_path / "trials.csv")]
    assert [run.exit for run in runs] == [0, 0, 0]
    assert tracker.seconds > 0.0


def test_what_is_recorded_is_not_written_again(tmp_path: Path, runs: list[Run]) -> None:
    recorded(tmp_path)
    recorded(tmp_path)
    assert len(runs) == 3
    recorded(tmp_path, identity="two")
    assert len({run.said["id"] for run in runs}) == 6


def test_what_was_left_half_is_written_anew(tmp_path: Path, runs: list[Run]) -> None:
    recorded(tmp_path)
    run_id = runs[0].said["id"]
    (tmp_path / "wandb" / "recorded" / run_id).unlink()
    half = tmp_path / "wandb" / f"offline-run-20260101_000000-{run_id}"
    half.mkdir()
    recorded(tmp_path)
    assert not half.exists()
    assert runs[-1].said["id"] == run_id


def test_an_error_of_the_package_is_one_of_the_tracker(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = sys.modules["wandb"]

    def refuse(**said: Any) -> Run:
        raise wandb.errors.Error("no key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(TrackerError, match=r"no key: log in .*, or take tracking.mode=offline"):
        recorded(tmp_path)
    monkeypatch.undo()


def test_several_records_at_once_may_have_it(tmp_path: Path, runs: list[Run]) -> None:
    trackers = [WandbTracker(folder=str(tmp_path / name)) for name in ("a", "b")]
    several = SeveralTrackers(trackers)
    several.open_study("small", {}, {})
    several.trial(TRIAL)
    assert [run.said["dir"] for run in runs] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_search_records_in_it(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["+experiment=digits_small", "made_up={}", "model.width=4", "study.n_trials=3"]
    few = ["search.chain.targets=2", "phases.confirm.max_models=1", "phases.confirm.baselines=[]"]
    assert main([*words, *few, "tracking=wandb", "threads=1", "study.name=small"]) == 0
    kinds = [run.said["job_type"] for run in runs]
    assert kinds.count("trial") == 3
    assert kinds[-1] == "study"
    assert "report.html" in {Path(file).name for file in runs[-1].artifacts[0].files}


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # W&B's folder of runs in the current folder is no package
    for spec in (None, ModuleSpec("wandb", None)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=spec: found)
        with pytest.raises(ConfigError, match=r"pip install 'pruning-orchestrator\[wandb\]'"):
            WandbTracker()


def test_a_mode_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be one of \['offline', 'online'\]; got 'later'"):
        WandbTracker(mode="later")


@pytest.mark.slow
def test_the_package_itself_writes_a_file_for_each_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    recorded(tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 3
    recorded(tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 3
