"""A study in MLflow: one parent run, and one child run per trial.

Each is written in as few requests as MLflow allows.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.tracking import StudyEnd, TrialRecord
from orchestrator.tracking.payload import Payload, batches, payload
from orchestrator.tracking.server import answering, connect, exchange

_PARENT = "mlflow.parentRunId"
_KEY = "study_key"
_NUMBER = "trial_number"
_STATUS = {
    "completed": "FINISHED",
    "infeasible": "FINISHED",
    "stopped": "FINISHED",
    "rejected": "FINISHED",
    "failed": "FAILED",
}
_END = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """A `Tracker` on an MLflow server or database; nothing is contacted before `open_study`.

    It uses explicit run ids on a client: no active run and no global uri, so that several studies
    can share a process.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.seconds = 0.0
        self._uri = uri
        self._experiment = experiment
        self._client: Any = None
        self._experiment_id = ""
        self._study = ""
        self._parent = ""
        # trial number -> (run id, ended)
        self._trials: dict[str, tuple[str, bool]] = {}
        # whether `_trials` is what the server has
        self._certain = False

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        with self._spending(), answering(self._uri):
            self._client, self._experiment_id = connect(self._uri, self._experiment)
        with self._spending(), exchange(self._uri):
            self._study = name
            key = hashlib.sha256(f"{name}\n{tags.get('study_id', '')}".encode()).hexdigest()[:24]
            runs = self._client.search_runs(
                [self._experiment_id], f"tags.{_KEY} = '{key}'", max_results=1
            )
            made = payload(params, {**tags, _KEY: key, "study": name, "kind": "study"})
            if runs:
                self._parent = runs[0].info.run_id
                self._client.update_run(self._parent, status="RUNNING")
                _keep_first_params(made, runs[0].data.params)
            else:
                # the key goes with the creation: a run without it would never be found again
                run = self._client.create_run(self._experiment_id, tags={_KEY: key}, run_name=name)
                self._parent = run.info.run_id
            self._send(self._parent, made)
            self._look_up()

    def trial(self, record: TrialRecord) -> None:
        number = str(record.number)
        with self._spending(), self._exchange():
            run_id, ended = self._trials.get(number, ("", False))
            if ended:
                return
            if run_id:
                # the process that wrote it died half way
                self._client.delete_run(run_id)
            tags = {**record.tags, "state": record.state, "study": self._study, "kind": "trial"}
            made = payload(record.params, tags, record.metrics, record.curves, record.artifacts)
            now = _milliseconds(record.at)
            run = self._client.create_run(
                self._experiment_id,
                start_time=now - round(1000 * record.metrics.get("seconds", 0.0)),
                tags={_PARENT: self._parent, _NUMBER: number},
                run_name=f"{self._study}-{record.number:04d}",
            )
            self._trials[number] = (run.info.run_id, False)
            self._send(run.info.run_id, made, record.at)
            self._client.set_terminated(run.info.run_id, _STATUS[record.state], end_time=now)
            self._trials[number] = (run.info.run_id, True)

    def close_study(
        self,
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
        end: StudyEnd = "finished",
        at: float | None = None,
    ) -> None:
        with self._spending(), self._exchange():
            # a run whose creation we gave up waiting for may have come into being since
            self._look_up()
            recorded = self._client.get_run(self._parent).data.metrics
            made = payload({}, {}, metrics)
            made.points = [
                point for point in made.points if recorded.get(point.name) != point.value
            ]
            self._send(self._parent, made, at)
            for path in artifacts:
                self._client.log_artifact(self._parent, str(path))
            self._client.set_terminated(self._parent, _END[end], end_time=_milliseconds(at))

    def _send(self, run_id: str, made: Payload, at: float | None = None) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = _milliseconds(at)
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

    def _look_up(self) -> None:
        """Look up which trials the server has.

        Of two runs of one trial, the ended one stays and the other is deleted.
        """
        self._trials = {}
        for run in list(self._children()):
            number = run.data.tags.get(_NUMBER)
            ended = run.info.status != "RUNNING"
            if number is None:
                # not a run of this program: a person added it by hand
                continue
            other, other_ended = self._trials.get(number, ("", False))
            surplus = run.info.run_id if other_ended else other
            if surplus:
                self._client.delete_run(surplus)
            if surplus != run.info.run_id:
                self._trials[number] = (run.info.run_id, ended)
        self._certain = True

    def _children(self) -> Iterator[Any]:
        token = None
        while True:
            query = f"tags.`{_PARENT}` = '{self._parent}'"
            page = self._client.search_runs(
                [self._experiment_id], query, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Around the requests of one record.

        Where an earlier one has broken off, a request may have been carried out without its reply:
        the server is asked before the next.
        """
        with exchange(self._uri):
            if not self._certain:
                self._look_up()
            self._certain = False
            yield
            self._certain = True

    @contextmanager
    def _spending(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun


def _keep_first_params(made: Payload, recorded: Mapping[str, str]) -> None:
    """Turns new values of recorded params into tags.

    MLflow's params never change, and a resumed study may have new values (more trials, say).
    """
    for key in [key for key in made.params if key in recorded]:
        value = made.params.pop(key)
        if value != recorded[key]:
            made.tags[f"now.{key}"[:250]] = value[:5000]


def _milliseconds(at: float | None = None) -> int:
    return int(1000 * (time.time() if at is None else at))
