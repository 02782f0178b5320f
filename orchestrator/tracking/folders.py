"""Folders as artifacts of an MLflow run: how processes without a disk in common hand one another
their plans.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_modules.errors import StorageError
from orchestrator.tracking import TrackerError
from orchestrator.tracking.server import answering, connect, exchange

_KEY = "folders_of"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class RunFolders:
    """One run per study, found by the study's id; `patience` in seconds for a server that does not
    answer.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        study_id: str,
        patience: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._uri, self._experiment, self._study_key = uri, experiment, study_id
        self._patience, self._now, self._sleep = patience, now, sleep
        self._client: Any = None
        self._run = ""

    def open(self, name: str) -> None:
        """Find the study's run, or create it. Errors: UserError, at once, where the server does not
        answer.
        """
        with answering(self._uri):
            self._client, experiment = connect(self._uri, self._experiment)
        with exchange(self._uri):
            found = self._client.search_runs(
                [experiment], f"tags.{_KEY} = '{self._study_key}'", max_results=1
            )
            tags = {_KEY: self._study_key, "study": name, "kind": "plans"}
            run = (
                found[0]
                if found
                else self._client.create_run(experiment, tags=tags, run_name=f"{name} plans")
            )
            self._run = run.info.run_id

    def put(self, folder: Path, name: str) -> None:
        """The files of `folder`, as `name`; what is there under this name is replaced."""
        self._patiently(lambda: self._client.log_artifacts(self._run, str(folder), name))

    def get(self, name: str, folder: Path) -> None:
        """`name` as `folder`, which is there whole or not at all; nothing is done where it is there
        already.
        """
        if folder.exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetched.") as scratch:
            found = self._patiently(
                lambda: self._client.download_artifacts(self._run, name, scratch)
            )
            try:
                os.replace(found, folder)
            except OSError:
                if not folder.exists():  # else another process of this machine was faster
                    raise

    def _patiently(self, call: Callable[[], Any]) -> Any:
        begin, pause = self._now(), _FIRST_PAUSE
        while True:
            try:
                with exchange(self._uri):
                    return call()
            except TrackerError as error:
                if error.refused or self._now() + pause - begin > self._patience:
                    raise StorageError(
                        "study.results=mlflow needs MLflow to answer; it has not for "
                        f"{self._patience:g} s "
                        f"(study.storage_patience): {error.reason}; what was finished is kept, "
                        "give the same command "
                        "again when it is back"
                    ) from None
                self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
