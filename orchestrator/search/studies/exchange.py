"""How the processes of a study see one another's plans.

They share a folder, or go through a store of folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from orchestrator.search.plans.finished import PLAN
from orchestrator.search.studies.orphans import plans_told
from orchestrator.search.studies.trial import Study


class Folders(Protocol):
    """A store that all processes reach.

    Both calls wait for it, within limits. Errors: UserError after that.
    """

    def put(self, folder: Path, name: str) -> None: ...

    def get(self, name: str, folder: Path) -> None: ...


class Exchange:
    """Passes finished plans between processes.

    `models` is this process's folder of finished plans; without a `store` all processes have the
    same folder.
    """

    def __init__(self, study: Study, models: Path, store: Folders | None = None) -> None:
        self.study = study
        self.models = models
        self.store = store

    def fetch(self) -> None:
        """Bring every plan that the study knows of into this process's folder."""
        if self.store is None:
            return
        for number in sorted(plans_told(self.study)):
            self.store.get(_name(number), self._folder(number))

    def publish(self, number: int) -> None:
        """Publish the plan, if any, of a trial of which Optuna is about to be told."""
        if self.store is None:
            return
        folder = self._folder(number)
        if (folder / PLAN).exists():
            self.store.put(folder, _name(number))

    def _folder(self, number: int) -> Path:
        return self.models / str(number)

    def publish_dense(self, folder: Path) -> None:
        if self.store is not None:
            self.store.put(folder, "dense")

    def fetch_dense(self, folder: Path) -> None:
        if self.store is not None:
            self.store.get("dense", folder)

    def publish_all(self) -> None:
        """Publish what an earlier run could not, and plans taken over from another study."""
        for number in sorted(plans_told(self.study)):
            self.publish(number)


def _name(number: int) -> str:
    return f"trials/{number}"
