"""A study in a real MLflow database: everything is there once, whatever is asked for twice."""

import logging
import math
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.errors import UserError
from orchestrator.tracking import (
    Point,
    StudyResults,
    Tracker,
    TrackerError,
    TrialRecord,
    TrialState,
)
from orchestrator.tracking.mlflow import MlflowTracker
from orchestrator.tracking.none import NoTracker
from orchestrator.tracking.payload import batches, payload, safe_keys

# MLflow's own use of SQLAlchemy, said once when its tables are first mapped.
pytestmark = pytest.mark.filterwarnings("ignore:The ..noload:DeprecationWarning")

STATES: tuple[TrialState, ...] = ("completed", "stopped", "failed", "rejected")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "mlflow.db"


def opened(database: Path, name: str, study_id: str = "1", **params: object) -> MlflowTracker:
    tracker = MlflowTracker(f"sqlite:///{database}", "pruning")
    tracker.open_study(name, {"study_id": study_id, "model": "resnet50"}, params)
    return tracker


def log(tracker: Tracker, number: int, state: TrialState = "completed", **more: Any) -> None:
    given: dict[str, Any] = {
        "params": {"seed": 0},
        "tags": {"model": "resnet50"},
        "metrics": {"quality": 0.5 + number / 100, "seconds": 7.0},
        "curves": [],
        "artifacts": {},
    }
    tracker.trial(TrialRecord(number, state=state, **(given | more)))


def client_of(database: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{database}")


def runs_of(database: Path, query: str) -> list[Any]:
    client = client_of(database)
    experiment = client.get_experiment_by_name("pruning")
    return list(client.search_runs([experiment.experiment_id], query))


def trials_of(database: Path, study: str) -> dict[str, Any]:
    runs = runs_of(database, f"tags.study = '{study}' and tags.kind = 'trial'")
    numbered = {run.data.tags["trial_number"]: run for run in runs}
    assert len(numbered) == len(runs)
    return numbered


def test_a_study_of_24_trials(database: Path, tmp_path: Path) -> None:
    tracker = opened(
        database, "whole", n_trials=24, tracking={"uri": "postgresql://me:secret@db/x"}
    )
    opening = tracker.seconds
    curves = [Point("finetune/loss", step, 1 / (step + 1)) for step in range(100)]
    for number in range(24):
        artifacts = {"plan.json": "{}", "groups/table.json": f"[{number}]"}
        log(tracker, number, STATES[number % 4], curves=curves, artifacts=artifacts)
    (tmp_path / "front.csv").write_text("trial\n")
    tracker.close_study(StudyResults({"front_size": 5.0}, [tmp_path / "front.csv"]))
    print(f"opening {opening:.2f} s, 24 trials and the end {tracker.seconds - opening:.2f} s")

    trials = trials_of(database, "whole")
    assert sorted(map(int, trials)) == list(range(24))
    (parent,) = runs_of(database, "tags.study = 'whole' and tags.kind = 'study'")
    client = client_of(database)
    for number, run in trials.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["state"] == STATES[int(number) % 4]
        assert run.info.status == ("FAILED" if run.data.tags["state"] == "failed" else "FINISHED")
        assert run.info.end_time - run.info.start_time == 7000
        assert run.data.params == {"seed": "0"}
        assert run.data.tags["model"] == "resnet50"
        assert run.data.metrics["quality"] == 0.5 + int(number) / 100
    run_id = trials["3"].info.run_id
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "finetune/loss")] == [
        (point.step, point.value) for point in curves
    ]
    downloaded = Path(client.download_artifacts(run_id, "groups/table.json", str(tmp_path)))
    assert downloaded.read_text() == "[3]"
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"front_size": 5.0}
    assert parent.data.params == {"n_trials": "24", "tracking.uri": "postgresql://me:***@db/x"}
    assert [entry.path for entry in client.list_artifacts(parent.info.run_id)] == ["front.csv"]
    assert (database.parent / "mlartifacts").is_dir()


def test_a_resumed_study_goes_on_and_logs_nothing_twice(database: Path) -> None:
    first = opened(database, "again", n_trials=2)
    log(first, 0)
    log(first, 0, metrics={"quality": 0.9})
    again = opened(database, "again", n_trials=4)
    log(again, 0, metrics={"quality": 0.9})
    log(again, 1)
    again.close_study(StudyResults(), end="interrupted")
    trials = trials_of(database, "again")
    assert sorted(trials) == ["0", "1"]
    assert trials["0"].data.metrics["quality"] == 0.5
    (parent,) = runs_of(database, "tags.study = 'again' and tags.kind = 'study'")
    assert parent.data.params == {"n_trials": "2"}
    assert parent.data.tags["now.n_trials"] == "4"
    assert parent.info.status == "KILLED"


def test_a_study_begun_anew_under_an_old_name_is_another_study(database: Path) -> None:
    log(opened(database, "twice", study_id="1"), 0)
    log(opened(database, "twice", study_id="2"), 0)
    assert len(runs_of(database, "tags.study = 'twice' and tags.kind = 'study'")) == 2
    assert len(runs_of(database, "tags.study = 'twice' and tags.kind = 'trial'")) == 2


def test_a_trial_whose_process_died_while_logging_is_logged_anew(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened(database, "half")

    class DiedError(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "set_terminated", die)
        with pytest.raises(DiedError):
            log(tracker, 0)
    log(opened(database, "half"), 0)
    assert trials_of(database, "half")["0"].info.status == "FINISHED"


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated"])
def test_a_reply_that_was_lost_leaves_no_second_run(
    database: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    from mlflow.exceptions import MlflowException

    name = f"lost-{call}"
    tracker = opened(database, name)
    done = getattr(tracker._client, call)

    def work_and_lose_the_reply(*given: object, **named: object) -> None:
        done(*given, **named)
        raise MlflowException("API request failed: connection aborted")

    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, call, work_and_lose_the_reply)
        with pytest.raises(TrackerError, match="connection aborted") as caught:
            log(tracker, 0)
        assert not caught.value.refused
    log(tracker, 0)
    log(tracker, 1)
    runs = runs_of(database, f"attributes.run_name LIKE '{name}-%'")
    assert sorted(run.data.tags["trial_number"] for run in runs) == ["0", "1"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = runs_of(database, f"tags.study = '{name}' and tags.kind = 'study'")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}


def test_a_run_that_came_into_being_after_it_was_given_up_is_removed(database: Path) -> None:
    tracker = opened(database, "late")
    log(tracker, 0)
    (first,) = trials_of(database, "late").values()
    tags = {
        key: first.data.tags[key] for key in ("mlflow.parentRunId", "trial_number", "study", "kind")
    }
    client_of(database).create_run(first.info.experiment_id, tags=tags)
    by_hand = {"mlflow.parentRunId": tags["mlflow.parentRunId"], "study": "late by hand"}
    client_of(database).create_run(first.info.experiment_id, tags=by_hand)
    tracker.close_study(StudyResults())
    assert trials_of(database, "late")["0"].info.run_id == first.info.run_id
    assert len(runs_of(database, "tags.study = 'late by hand'")) == 1


def test_the_end_of_a_study_is_recorded_once_and_with_its_own_time(database: Path) -> None:
    tracker = opened(database, "end")
    log(tracker, 0, at=1_700_000_000.0)
    for _ in range(2):
        tracker.close_study(StudyResults({"hypervolume": 0.5}, []), at=1_700_000_009.0)
    (parent,) = runs_of(database, "tags.study = 'end' and tags.kind = 'study'")
    assert len(client_of(database).get_metric_history(parent.info.run_id, "hypervolume")) == 1
    assert parent.info.end_time == 1_700_000_009_000
    trial = trials_of(database, "end")["0"]
    assert (trial.info.start_time, trial.info.end_time) == (1_699_999_993_000, 1_700_000_000_000)


def test_what_the_server_will_never_take_is_told_apart(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    tracker = opened(database, "refused")

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no such value", INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(tracker._client, "log_batch", refuse)
    with pytest.raises(TrackerError, match="no such value") as caught:
        log(tracker, 0)
    assert caught.value.refused


def test_values_beyond_the_limits_arrive(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = opened(database, "limits")
    long_text = "x" * 7000
    params = {f"threshold[layer{n}]": n for n in range(250)} | {"plan": long_text, "k" * 300: 1}
    metrics = {"nan": math.nan, "loss": 1.0, "up": math.inf}
    curves = [Point("c", step, math.nan if step == 5 else float(step)) for step in range(2500)]
    with caplog.at_level(logging.WARNING):
        log(tracker, 0, params=params, metrics=metrics, curves=curves)
    assert "'plan'" in caplog.text
    run = trials_of(database, "limits")["0"]
    assert len(run.data.params) == 252
    assert run.data.params["threshold_layer7_"] == "7"
    assert run.data.params["plan"] == "x" * 6000
    assert run.data.metrics == {"loss": 1.0, "c": 2499.0}
    assert run.data.tags["nonfinite.nan"] == "nan at step 0"
    assert run.data.tags["nonfinite.up"] == "inf at step 0"
    assert run.data.tags["nonfinite.c"] == "nan at step 5"
    client = client_of(database)
    assert len(client.get_metric_history(run.info.run_id, "c")) == 2499
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["cut_values.json"]


def test_keys_stay_apart_and_short() -> None:
    keys = safe_keys(["a[b", "a]b", "a_b", "/../x//y/", "k" * 300, "k" * 301, "", "a.b/c d-e:f"])
    assert len(set(keys.values())) == 8
    assert keys["a_b"] == "a_b"
    assert keys["/../x//y/"] == "x/y"
    assert keys["a.b/c d-e:f"] == "a.b/c d-e:f"
    assert max(map(len, keys.values())) <= 250


def test_requests_are_few_and_within_the_limits() -> None:
    made = payload(
        {str(n): n for n in range(150)}, {"t": "x"}, {}, [Point("c", n, 0.0) for n in range(900)]
    )
    sizes = [(len(params), len(tags), len(points)) for params, tags, points in batches(made)]
    assert sizes == [(100, 1, 800), (50, 0, 100)]
    assert list(batches(payload({}, {}))) == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_is_not_there_is_said_at_once_without_the_password(scheme: str) -> None:
    begun = time.perf_counter()
    tracker = MlflowTracker(f"{scheme}://me:pa55word@127.0.0.1:{closed_port()}/x", "pruning")
    with pytest.raises(
        UserError, match=rf"MLflow at '{scheme}://me:\*\*\*@127.*refused.*tracking.uri"
    ) as caught:
        tracker.open_study("s", {}, {})
    assert "pa55word" not in str(caught.value)
    assert time.perf_counter() - begun < 30


def test_a_port_that_is_no_number_is_said() -> None:
    with pytest.raises(
        UserError, match=r"port in tracking.uri must be a number .*got 'http://localhost:50x0'"
    ):
        MlflowTracker("http://localhost:50x0", "pruning").open_study("s", {}, {})


def test_a_server_that_accepts_and_says_nothing_does_not_hold_the_study_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.tracking.server._OPENING_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.perf_counter()
        with pytest.raises(UserError, match="timed out"):
            MlflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "pruning").open_study(
                "s", {}, {}
            )
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "ftp://x"])
def test_what_is_no_store_is_said_with_what_would_be(uri: str) -> None:
    with pytest.raises(
        UserError, match=r"must be a database or a server; got .*use sqlite:///mlflow\.db"
    ):
        MlflowTracker(uri, "pruning").open_study("s", {}, {})


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("do not overwrite")
    with pytest.raises(UserError, match="must name an SQLite file"):
        MlflowTracker(f"sqlite:///{path}", "pruning").open_study("s", {}, {})
    assert path.read_text() == "do not overwrite"


def test_a_deleted_experiment_is_said(database: Path) -> None:
    MlflowTracker(f"sqlite:///{database}", "gone").open_study("s", {}, {})
    client = client_of(database)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(UserError, match="'gone' was deleted; restore it"):
        MlflowTracker(f"sqlite:///{database}", "gone").open_study("s", {}, {})


@pytest.mark.slow
@pytest.mark.family
def test_a_new_database_says_nothing_on_the_screen(tmp_path: Path) -> None:
    """In a process that begins with it, as a user's does."""
    code = (
        "from orchestrator.tracking.mlflow import MlflowTracker as T\n"
        "T('sqlite:///mlflow.db', 'e').open_study('s', {}, {})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").is_file()
    assert not (tmp_path / "mlruns").exists()


def test_no_tracker_is_a_tracker_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker: Tracker = NoTracker()
    tracker.open_study("s", {}, {})
    log(tracker, 0)
    tracker.close_study(StudyResults())
    assert tracker.seconds == 0.0
    assert not list(tmp_path.iterdir())
