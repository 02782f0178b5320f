"""What MLflow shows of a study: columns, links, the front, and nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.jobs.shown import five_digits, shown_costs, size_words
from orchestrator.redact import redact_word
from orchestrator.search.studies.storage import Journal
from orchestrator.tracking import CONFIRMED, ON_FRONT, ModelRecord, StudyResults, TrialRecord
from orchestrator.tracking.database import make_whole
from orchestrator.tracking.mlflow import MlflowTracker
from orchestrator.tracking.pages import Place, columns, linked

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload:DeprecationWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "mlflow.db"
    make_whole(path)
    return path


@pytest.fixture
def database(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path))


def opened(database: Path, name: str = "s") -> MlflowTracker:
    tracker = MlflowTracker(f"sqlite:///{database}", "pruning")
    tags = {"study_id": name, "quality": "accuracy", "data": "digits", "data_digest": "abc"}
    tracker.open_study(name, tags, {"seed": 0})
    return tracker


def client_of(database: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{database}")


def runs_of(database: Path) -> dict[str, Any]:
    """Runs by their names."""
    client = client_of(database)
    experiment = client.get_experiment_by_name("pruning")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def trial(number: int) -> TrialRecord:
    tags = {CONFIRMED: "false", ON_FRONT: "false"}
    metrics = {"flops_ratio": 0.3, "seconds": 1.0}
    return TrialRecord(
        number, "completed", {}, tags, metrics, title=f"{number:03d} l2 30% of FLOPs"
    )


def model(key: str, front: bool, test: float = 0.9) -> ModelRecord:
    tags = {CONFIRMED: "true", ON_FRONT: str(front).lower()}
    return ModelRecord(key, key, tags, {}, {"test_accuracy": test})


def test_test_results_go_to_the_run_of_the_trial_or_to_one_of_their_own(database: Path) -> None:
    tracker = opened(database)
    tracker.trial(trial(7))
    models = [model("7", front=True), model("dense", front=False), model("uniform-7", front=False)]
    for _ in range(2):
        tracker.close_study(StudyResults(models=models))
    runs = runs_of(database)
    assert set(runs) == {"s", "007 l2 30% of FLOPs", "dense", "uniform-7"}
    confirmed = runs["007 l2 30% of FLOPs"]
    assert confirmed.data.tags[ON_FRONT] == "true"
    history = client_of(database).get_metric_history(confirmed.info.run_id, "test_accuracy")
    assert [point.value for point in history] == [0.9]
    for name in ("dense", "uniform-7"):
        assert runs[name].info.status == "FINISHED"
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["s"].info.run_id


def test_a_study_that_goes_on_has_one_front(database: Path) -> None:
    tracker = opened(database)
    tracker.trial(trial(1))
    tracker.trial(trial(2))
    first = [model("1", front=True), model("dense", front=False), model("uniform-1", front=False)]
    tracker.close_study(StudyResults(models=first))
    again = opened(database)
    second = [model("2", front=True), model("dense", front=False, test=0.8)]
    again.close_study(StudyResults(models=second))
    runs = runs_of(database)
    assert {name: run.data.tags.get(ON_FRONT) for name, run in runs.items()} == {
        "s": None,
        "001 l2 30% of FLOPs": "false",
        "002 l2 30% of FLOPs": "true",
        "dense": "false",
    }
    assert runs["dense"].data.metrics["test_accuracy"] == 0.8


def test_an_interrupted_end_takes_nothing_back(database: Path) -> None:
    tracker = opened(database)
    tracker.trial(trial(1))
    tracker.close_study(StudyResults(models=[model("1", front=True), model("dense", front=False)]))
    opened(database).close_study(StudyResults(), "interrupted")
    runs = runs_of(database)
    assert set(runs) == {"s", "001 l2 30% of FLOPs", "dense"}
    assert runs["001 l2 30% of FLOPs"].data.tags[ON_FRONT] == "true"
    assert runs["s"].data.tags["state"] == "interrupted"


def test_the_description_leads_to_tables_models_and_files(database: Path) -> None:
    tracker = opened(database)
    tracker.trial(trial(7))
    text = "[the report](file:report.html)\n\n| [trial 7](run:7) | [gone](run:8) |"
    table = {"model": ["trial 7"], "test_accuracy": [0.9]}
    tracker.close_study(StudyResults(models=[model("7", True)], description=text, table=table))
    runs = runs_of(database)
    study = runs["s"].info
    child = runs["007 l2 30% of FLOPs"]
    base = f"#/experiments/{study.experiment_id}/runs"
    note = runs["s"].data.tags["mlflow.note.content"]
    assert f"({base}?workflowType=machine_learning&viewStateShareKey={study.run_id})" in note
    assert f"{base}/{study.run_id}/artifacts/report.html" in note
    assert f"[trial 7]({base}/{child.info.run_id}?" in note
    assert "| gone |" in note
    assert f"%5B%22{child.info.run_id}%22%5D" in note
    assert study.run_id in child.data.tags["mlflow.note.content"]
    logged = json.loads(runs["s"].data.tags["mlflow.loggedArtifacts"])
    assert logged == [{"path": "front.json", "type": "table"}]
    path = client_of(database).download_artifacts(study.run_id, "front.json")
    assert json.loads(Path(path).read_text()) == {
        "columns": ["model", "test_accuracy"],
        "data": [["trial 7", 0.9]],
    }


def test_the_experiment_has_its_kind_and_views_and_keeps_a_description_of_its_own(
    database: Path,
) -> None:
    opened(database)
    client = client_of(database)
    experiment = client.get_experiment_by_name("pruning")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(experiment.tags["mlflow.sharedViewState.accuracy"])
    assert set(columns("accuracy")) < set(view["selectedColumns"])
    assert "viewStateShareKey=accuracy" in experiment.tags["mlflow.note.content"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")
    opened(database, "t")
    assert client.get_experiment_by_name("pruning").tags["mlflow.note.content"] == "ours"
    (data,) = runs_of(database)["s"].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "abc")


def test_links_to_what_is_not_there_are_words() -> None:
    assert linked("[a](run:1) [b](https://x)", Place("1", "p"), {}) == "a [b](https://x)"


def test_costs_are_shown_as_people_compare_them() -> None:
    costs = {"flops": 1e6, "effective_flops": 1e6, "params": 1e3, "size_mb": 0.5}
    ratios = {"flops": 0.5, "effective_flops": 0.499, "params": 0.4, "size_mb": 0.4}
    assert shown_costs(costs, ratios) == {"size_mb": 0.5, "flops_ratio": 0.5, "params_ratio": 0.4}
    sparse = shown_costs({}, {"flops": 0.5, "effective_flops": 0.1})
    assert sparse == {"flops_ratio": 0.5, "effective_flops_ratio": 0.1}
    assert five_digits(0.123456789) == 0.12346
    assert five_digits(float("inf")) == float("inf")
    assert [size_words(ratio, "flops") for ratio in (0.2637, 0.0571, 1.0)] == [
        "26% of FLOPs",
        "5.7% of FLOPs",
        "100% of FLOPs",
    ]


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("study.n_trials=4", "study.n_trials=4"),
        ("tracking.uri=http://me:pa55@h", "tracking.uri=http://me:***@h"),
        ("data.token=a,b c", "data.token=***"),
        ("+data={user: me, password: 'pa55', size: 3}", "+data={user: me, password: ***, size: 3}"),
        ("model.tokenizer=bpe", "model.tokenizer=bpe"),
    ],
)
def test_a_command_is_shown_without_its_secrets(word: str, shown: str) -> None:
    assert redact_word(word) == shown


def test_the_journal_opens_in_optunas_dashboard(tmp_path: Path) -> None:
    url = pytest.importorskip("optuna_dashboard._storage_url")
    path = tmp_path / "study.journal"
    optuna.create_study(study_name="s", storage=optuna.storages.JournalStorage(Journal(path)))
    assert optuna.get_all_study_names(url.get_storage(str(path))) == ["s"]
