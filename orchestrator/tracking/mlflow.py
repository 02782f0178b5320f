"""A study in MLflow: one parent run, one child run per trial, each written in as few requests as MLflow allows."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning_modules.errors import UserError
from orchestrator.files import require_writable
from orchestrator.redact import redact
from orchestrator.tracking import Point, StudyEnd, TrialState
from orchestrator.tracking.payload import Payload, batches, payload

_PARENT = "mlflow.parentRunId"
_KEY = "study_key"
_NUMBER = "trial_number"
_SQLITE = "sqlite:///"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_REACH_SECONDS = 5.0
_STATUS = {**dict.fromkeys(("completed", "infeasible", "stopped", "rejected"), "FINISHED"), "failed": "FAILED"}
_END = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# MLflow's own settings retry a dead address for minutes; a wrong uri should be known at once.
_ONE_TRY = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}


class MlflowTracker:
    """A `Tracker` on an MLflow server or database; nothing is contacted before `open_study`.

    Explicit run ids on a client: no active run, no global uri, so that several studies can share a process.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.seconds = 0.0
        self._uri = uri
        self._experiment = experiment
        self._client: Any = None
        self._experiment_id = ""
        self._study = ""
        self._parent = ""
        self._trials: dict[str, tuple[str, bool]] = {}  # trial number -> (run id, ended)

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        with self._spending(), _answering(self._uri):
            with _environment(_ONE_TRY), _quiet():
                self._client, self._experiment_id = _connect(self._uri, self._experiment)
            self._study = name
            key = hashlib.sha256(f"{name}\n{tags.get('study_id', '')}".encode()).hexdigest()[:24]
            found = self._client.search_runs([self._experiment_id], f"tags.{_KEY} = '{key}'", max_results=1)
            made = payload(params, {**tags, _KEY: key, "study": name, "kind": "study"})
            if found:
                self._parent = found[0].info.run_id
                self._client.update_run(self._parent, status="RUNNING")
                _keep_first_params(made, found[0].data.params)
            else:
                # The key goes with the creation: a run without it would never be found again.
                run = self._client.create_run(self._experiment_id, tags={_KEY: key}, run_name=name)
                self._parent = run.info.run_id
            self._send(self._parent, made)
            self._trials = self._recorded()

    def trial(
        self,
        number: int,
        *,
        state: TrialState,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        curves: Sequence[Point],
        artifacts: Mapping[str, str],
    ) -> None:
        with self._spending(), _answering(self._uri):
            run_id, ended = self._trials.get(str(number), ("", False))
            if ended:
                return
            if run_id:  # the process that wrote it died half way
                self._client.delete_run(run_id)
            named = {**tags, "state": state, "study": self._study, "kind": "trial"}
            made = payload(params, named, metrics, curves, artifacts)
            now = _milliseconds()
            run = self._client.create_run(
                self._experiment_id,
                start_time=now - round(1000 * metrics.get("seconds", 0.0)),
                tags={_PARENT: self._parent, _NUMBER: str(number)},
                run_name=f"{self._study}-{number:04d}",
            )
            self._trials[str(number)] = (run.info.run_id, False)
            self._send(run.info.run_id, made)
            self._client.set_terminated(run.info.run_id, _STATUS[state], end_time=now)
            self._trials[str(number)] = (run.info.run_id, True)

    def close_study(self, metrics: Mapping[str, float], artifacts: Sequence[Path], end: StudyEnd = "finished") -> None:
        with self._spending(), _answering(self._uri):
            self._send(self._parent, payload({}, {}, metrics))
            for path in artifacts:
                self._client.log_artifact(self._parent, str(path))
            self._client.set_terminated(self._parent, _END[end])

    def _send(self, run_id: str, made: Payload) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = _milliseconds()
        for params, tags, points in batches(made):
            self._client.log_batch(
                run_id,
                metrics=[Metric(point.name, point.value, now, point.step) for point in points],
                params=[Param(key, value) for key, value in params],
                tags=[RunTag(key, value) for key, value in tags],
            )
        if made.artifacts:
            with tempfile.TemporaryDirectory() as folder:
                for name, text in made.artifacts.items():
                    path = Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text, encoding="utf-8")
                self._client.log_artifacts(run_id, folder)

    def _recorded(self) -> dict[str, tuple[str, bool]]:
        recorded: dict[str, tuple[str, bool]] = {}
        token = None
        while True:
            query = f"tags.`{_PARENT}` = '{self._parent}'"
            page = self._client.search_runs([self._experiment_id], query, max_results=1000, page_token=token)
            for run in page:
                number, ended = run.data.tags.get(_NUMBER, ""), run.info.status != "RUNNING"
                if ended or number not in recorded:
                    recorded[number] = (run.info.run_id, ended)
            token = page.token
            if not token:
                return recorded

    @contextmanager
    def _spending(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun


def _connect(uri: str, experiment: str) -> tuple[Any, str]:
    """(client, experiment id); creates the schema and the experiment where they are missing."""
    location = _checked(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=_absolute(uri))
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            return client, client.create_experiment(experiment, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(experiment)  # another worker was faster
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment '{experiment}' was deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another tracking.experiment"
        )
    return client, found.experiment_id


def _absolute(uri: str) -> str:
    """MLflow keeps one store per URI and process: a relative file would stay where the first study was run."""
    if not uri.startswith(_SQLITE):
        return uri
    path, question, query = uri.removeprefix(_SQLITE).partition("?")
    return f"{_SQLITE}{Path(path).resolve()}{question}{query}"


def _checked(uri: str) -> str | None:
    """Where artifacts go, None for the server's own place; UserError where MLflow would try in vain for minutes."""
    parts = urlsplit(uri)
    dialect = parts.scheme.partition("+")[0]
    if uri.startswith(_SQLITE):
        database = Path(uri.removeprefix(_SQLITE).partition("?")[0])
        folder = require_writable(database.parent)
        if database.is_dir() or (database.is_file() and database.read_bytes()[:16] not in (b"", b"SQLite format 3\0")):
            raise UserError(f"tracking.uri must name an SQLite file; '{database}' is none; choose another name")
        return (folder / "mlartifacts").resolve().as_uri()
    if dialect in _PORTS and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or _PORTS[dialect]), _REACH_SECONDS).close()
    elif dialect not in ("http", "https", "databricks", *_PORTS):
        raise UserError(
            f"tracking.uri must be a database or a server; got '{redact(uri)}'; "
            "use sqlite:///mlflow.db, postgresql://..., or http(s)://..."
        )
    return None


def _keep_first_params(made: Payload, recorded: Mapping[str, str]) -> None:
    """MLflow's params never change; what a resumed study has new values for (more trials, say) becomes tags."""
    for key in [key for key in made.params if key in recorded]:
        value = made.params.pop(key)
        if value != recorded[key]:
            made.tags[f"now.{key}"[:250]] = value[:5000]


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """What the server, the database or the network raise is for the user to mend, and may hold the password."""
    # Counts of use would go to a third party, from a thread, on machines without network too. Before the first import.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError) as error:
        reason = redact(str(error)).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"MLflow at '{redact(uri)}' must answer; it says: {reason[0][:400]}; "
            "mend tracking.uri or the server and give the same command again (or tracking=none)"
        ) from None


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the page of migration steps that a new database logs, and warnings about tries that we report."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _milliseconds() -> int:
    return int(time.time() * 1000)
