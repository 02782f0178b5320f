"""Studies side by side are a run of MLflow, once, where the studies are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import main
from orchestrator.jobs.compared import compare_and_record
from orchestrator.tracking.database import make_whole
from orchestrator.tracking.mlflow import MlflowTracker
from tests.orchestrator.test_compare_job import study

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload:DeprecationWarning")
TRACKER = "orchestrator.tracking.mlflow.MlflowTracker"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "mlflow.db"
    make_whole(path)
    return path


def places(uri: str = "sqlite:///mlflow.db") -> dict[str, Any]:
    return {"_target_": TRACKER, "uri": uri, "experiment": "pruning", "register": None}


def comparisons() -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("pruning")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'comparison'")
    return list(runs)


def test_a_comparison_is_a_run_and_is_replaced(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(whole, tmp_path)
    MlflowTracker("sqlite:///mlflow.db", "pruning").open_study("a", {"study_id": "1"}, {})
    several = {"_target_": "orchestrator.tracking.several.SeveralTrackers", "trackers": [places()]}
    study(Path("runs/a"), tracking=places())
    study(Path("runs/b"), better=0.02, seed=1, tracking=several)
    for _ in range(2):
        assert main(["job=compare"]) == 0
    assert "not recorded" not in capsys.readouterr().err
    (run,) = comparisons()
    assert run.info.run_name == "comparison"
    assert run.info.status == "FINISHED"
    assert run.data.tags["studies"] == "a, b"
    note = run.data.tags["mlflow.note.content"]
    assert "artifacts/comparison.html" in note
    assert "[a](#/experiments/" in note
    files = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (files / "comparison.html").read_bytes() == Path("runs/comparison.html").read_bytes()
    table = json.loads((files / "comparison.json").read_text())
    assert table["columns"][:2] == ["variant", "studies"]
    assert len(table["data"]) == 1
    study(Path("runs/c"), tracking=places())
    compare_and_record([Path("runs/a"), Path("runs/c")])
    assert len(comparisons()) == 2


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///gone.db", "run this where the studies were run"),
        ("postgresql://me:***@nowhere.invalid/db", "config.yaml has no passwords"),
        ("http://127.0.0.1:9", "must answer"),
    ],
)
def test_an_mlflow_out_of_reach_is_told_and_no_failure(
    uri: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [study(Path("runs") / name, tracking=places(uri)) for name in ("a", "b")]
    compare_and_record(folders)
    assert said in capsys.readouterr().err
    assert Path("runs/comparison.html").is_file()
    assert not Path("gone.db").exists()


def test_studies_that_are_not_in_mlflow_leave_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.jobs.compared._record", None)
    compare_and_record([study(Path("runs") / name) for name in ("a", "b")])
    assert Path("runs/comparison.html").is_file()
    assert not list(tmp_path.glob("*.db"))
