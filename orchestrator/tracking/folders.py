"""Folders as artifacts of an MLflow run.

Processes without a disk in common hand one another their plans in this way.
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
_FIRST_PAUSE = 1.0
"""Seconds between the first two tries; the pause then doubles."""
_LONGEST_PAUSE = 30.0
"""Longest pause between two tries, in seconds."""


class RunFolders:
    """One run per study, found by the study's id.

    `patience` is in seconds, for a server that does not answer.
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
        self._uri = uri
        self._experiment = experiment
        self._study_key = study_id
        self._patience = patience
        self._now = now
        self._sleep = sleep
        self._client: Any = None
        self._run = ""

    def open(self, name: str) -> None:
        """Find the study's run, or create it.

        Errors: UserError, at once, where the server does not answer.
        """
        with answering(self._uri):
            self._client, experiment = connect(self._uri, self._experiment)
        with exchange(self._uri):
            runs = self._client.search_runs(
                [experiment], f"tags.{_KEY} = '{self._study_key}'", max_results=1
            )
            if runs:
                run = runs[0]
            else:
                tags = {_KEY: self._study_key, "study": name, "kind": "plans"}
                run = self._client.create_run(experiment, tags=tags, run_name=f"{name} plans")
            self._run = run.info.run_id

    def put(self, folder: Path, name: str) -> None:
        """Store the files of `folder` as `name`; files under this name are replaced."""
        self._patiently(lambda: self._client.log_artifacts(self._run, str(folder), name))

    def get(self, name: str, folder: Path) -> None:
        """Bring `name` to `folder`, whole or not at all.

        Nothing is done where the folder exists.
        """
        if folder.exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)

        def download(scratch: str) -> Any:
            return self._client.download_artifacts(self._run, name, scratch)

        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetched.") as scratch:
            fetched = self._patiently(lambda: download(scratch))
            try:
                os.replace(fetched, folder)
            except OSError:
                # the folder exists where another process of this machine was faster
                if not folder.exists():
                    raise

    def _patiently(self, call: Callable[[], Any]) -> Any:
        begin = self._now()
        pause = _FIRST_PAUSE
        while True:
            try:
                with exchange(self._uri):
                    return call()
            except TrackerError as error:
                if error.refused or self._now() + pause - begin > self._patience:
                    raise StorageError(
                        "study.results=mlflow needs MLflow to answer; it has not for "
                        f"{self._patience:g} s (study.storage_patience): {error.reason}; what was "
                        "finished is kept, give the same command again when it is back"
                    ) from None
                self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
