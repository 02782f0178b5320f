"""A study in MLflow: one parent run, and one child run per trial, baseline and dense model.

Each is written in as few requests as MLflow allows.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.tracking import (
    ON_FRONT,
    Finalist,
    ModelRecord,
    StudyEnd,
    StudyResults,
    TrialRecord,
)
from orchestrator.tracking.pages import (
    NOTE,
    TABLE,
    TABLES,
    Place,
    dress,
    linked,
    log_data,
    made_by,
)
from orchestrator.tracking.payload import Payload, batches, payload
from orchestrator.tracking.registry import check_name, register
from orchestrator.tracking.server import answering, connect, exchange

_PARENT = "mlflow.parentRunId"
_KEY = "study_key"
_NUMBER = "trial_number"
_MODEL = "model_key"
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

    def __init__(self, uri: str, experiment: str, register: str | None = None) -> None:
        """`register` names the registered model of the finalists; None: they are not registered.

        Errors: ConfigError for a name that MLflow refuses.
        """
        if register is not None:
            check_name(register)
        self.seconds = 0.0
        self._register = register
        self._uri = uri
        self._experiment = experiment
        self._client: Any = None
        self._experiment_id = ""
        self._study = ""
        self._parent = ""
        self._place = Place("", "")
        # trial number, or key of a model -> (run id, ended)
        self._children: dict[str, tuple[str, bool]] = {}
        # those of which an end of this study has said something
        self._fronts: set[str] = set()
        # whether `_children` is what the server has
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
            about = {**tags, **made_by(), _KEY: key, "study": name, "kind": "study"}
            made = payload(params, about)
            if runs:
                self._parent = runs[0].info.run_id
                self._client.update_run(self._parent, status="RUNNING")
                _keep_first_params(made, runs[0].data.params)
            else:
                # the key goes with the creation: a run without it would never be found again
                run = self._client.create_run(self._experiment_id, tags={_KEY: key}, run_name=name)
                self._parent = run.info.run_id
            self._place = Place(self._experiment_id, self._parent)
            made.tags |= {NOTE: self._description(StudyResults()), "state": "running"}
            self._send(self._parent, made)
            dress(self._client, self._place, tags.get("quality", "quality"))
            log_data(self._client, self._parent, tags)
            self._look_up()

    def trial(self, record: TrialRecord) -> None:
        number = str(record.number)
        with self._spending(), self._exchange():
            run_id, ended = self._children.get(number, ("", False))
            if ended:
                return
            if run_id:
                # the process that wrote it died half way
                self._client.delete_run(run_id)
            tags = {**record.tags, "state": record.state, "kind": "trial", **self._of_child()}
            made = payload(record.params, tags, record.metrics, record.curves, record.artifacts)
            ended_at = time.time() if record.at is None else record.at
            begun = _milliseconds(ended_at) - round(1000 * record.metrics.get("seconds", 0.0))
            run_id = self._create(
                number, record.title or f"{self._study}-{record.number:04d}", begun
            )
            self._send(run_id, made, ended_at)
            self._terminate(number, _STATUS[record.state], ended_at)

    def close_study(
        self, results: StudyResults, end: StudyEnd = "finished", at: float | None = None
    ) -> None:
        with self._spending(), self._exchange():
            # a run whose creation we gave up waiting for may have come into being since
            self._look_up()
            for model in results.models:
                self._record_model(model, at)
            if results.models:
                self._forget_others({model.key for model in results.models})
            made = self._of_study(results)
            made.tags["state"] = end
            self._send(self._parent, made, at)
            for path in results.artifacts:
                self._client.log_artifact(self._parent, str(path))
            for finalist in results.finalists:
                self._register_finalist(finalist)
            self._client.set_terminated(self._parent, _END[end], end_time=_milliseconds(at))

    def _of_study(self, results: StudyResults) -> Payload:
        """What the results add to the study's own run."""
        tags = {}
        artifacts = {}
        if results.description:
            tags[NOTE] = self._description(results)
        if results.table:
            rows = list(zip(*results.table.values(), strict=True))
            artifacts[TABLE] = json.dumps({"columns": list(results.table), "data": rows})
            tags[TABLES] = json.dumps([{"path": TABLE, "type": "table"}])
        made = payload({}, tags, results.metrics, artifacts=artifacts)
        _keep_new_metrics(made, self._client.get_run(self._parent).data.metrics)
        return made

    def _description(self, results: StudyResults) -> str:
        """The description of the study's run, behind links to the tables of its models."""
        runs = {key: run_id for key, (run_id, _) in self._children.items()}
        links = [f"[All models in one table]({self._place.table_link})"]
        front = [runs[model.key] for model in results.models if model.tags[ON_FRONT] == "true"]
        if front:
            links.append(f"[the front side by side]({self._place.compare_link(front)})")
        if results.description:
            links.append(linked(results.description, self._place, runs))
        return " · ".join(links)

    def _record_model(self, model: ModelRecord, at: float | None) -> None:
        """What test data says of a model goes to the run of its trial, or to one of its own."""
        made = payload(model.params, {**model.tags, **self._of_child()}, model.metrics)
        run_id, ended = self._children.get(model.key, ("", False))
        if not run_id:
            run_id = self._create(model.key, model.title, _milliseconds(at))
        else:
            recorded = self._client.get_run(run_id).data
            _keep_first_params(made, recorded.params)
            _keep_new_metrics(made, recorded.metrics)
        self._send(run_id, made, at)
        if not ended:
            self._terminate(model.key, "FINISHED", at)

    def _register_finalist(self, finalist: Finalist) -> None:
        run_id, _ = self._children.get(finalist.key, ("", False))
        if self._register is not None and run_id:
            register(self._client, self._register, run_id, finalist)

    def _forget_others(self, keys: set[str]) -> None:
        """What an earlier end of this study said of models that are not among its last."""
        for key in set(self._fronts) - keys:
            run_id, _ = self._children[key]
            if key.isdigit():
                self._client.set_tag(run_id, ON_FRONT, "false")
            else:
                self._client.delete_run(run_id)

    def _of_child(self) -> dict[str, str]:
        """Tags of every run below the study's, with a link to that."""
        note = (
            f"A model of the study [{self._study}]({self._place.link}); "
            f"[all of them in one table]({self._place.table_link})."
        )
        return {**made_by(), "study": self._study, NOTE: note}

    def _create(self, key: str, title: str, begun: int) -> str:
        """The id of a new run below the study's; its key goes with the creation."""
        run = self._client.create_run(
            self._experiment_id,
            start_time=begun,
            tags={_PARENT: self._parent, _NUMBER if key.isdigit() else _MODEL: key},
            run_name=title,
        )
        run_id: str = run.info.run_id
        self._children[key] = (run_id, False)
        return run_id

    def _terminate(self, key: str, status: str, at: float | None) -> None:
        run_id, _ = self._children[key]
        self._client.set_terminated(run_id, status, end_time=_milliseconds(at))
        self._children[key] = (run_id, True)

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
        """Look up which trials and models the server has.

        Of two runs of one trial, the ended one stays and the other is deleted.
        """
        self._children = {}
        self._fronts = set()
        for run in list(self._runs_below()):
            key = run.data.tags.get(_NUMBER) or run.data.tags.get(_MODEL)
            ended = run.info.status != "RUNNING"
            if key is None:
                # not a run of this program: a person added it by hand
                continue
            other, other_ended = self._children.get(key, ("", False))
            surplus = run.info.run_id if other_ended else other
            if surplus:
                self._client.delete_run(surplus)
            if surplus != run.info.run_id:
                self._children[key] = (run.info.run_id, ended)
            if run.data.tags.get(ON_FRONT) == "true" or not key.isdigit():
                self._fronts.add(key)
        self._certain = True

    def _runs_below(self) -> Iterator[Any]:
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


def _keep_new_metrics(made: Payload, recorded: Mapping[str, float]) -> None:
    """Leave out what is recorded: the same value again would be another point of a curve."""
    made.points = [point for point in made.points if recorded.get(point.name) != point.value]


def _milliseconds(at: float | None = None) -> int:
    return int(1000 * (time.time() if at is None else at))
