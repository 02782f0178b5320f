"""How the processes of a study see one another's plans: in a folder that they share, or through a
store of folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from orchestrator.search.plans.finished import PLAN
from orchestrator.search.studies.orphans import plans_told
from orchestrator.search.studies.trial import Study


class Folders(Protocol):
    """A store that all processes reach; both calls wait for it, within limits. Errors: UserError
    behind them.
    """

    def put(self, folder: Path, name: str) -> None: ...

    def get(self, name: str, folder: Path) -> None: ...


class Exchange:
    """`models` is this process's folder of finished plans; without a `store` all processes have the
    same one.
    """

    def __init__(self, study: Study, models: Path, store: Folders | None = None) -> None:
        self.study, self.models, self.store = study, models, store

    def fetch(self) -> None:
        """Every plan that the study knows of is here afterwards."""
        if self.store is not None:
            for number in sorted(plans_told(self.study)):
                self.store.get(_name(number), self.models / str(number))

    def publish(self, number: int) -> None:
        """The plan of a trial that is about to be told, where it has one."""
        if self.store is not None and (self.models / str(number) / PLAN).exists():
            self.store.put(self.models / str(number), _name(number))

    def publish_dense(self, folder: Path) -> None:
        if self.store is not None:
            self.store.put(folder, "dense")

    def fetch_dense(self, folder: Path) -> None:
        if self.store is not None:
            self.store.get("dense", folder)

    def publish_all(self) -> None:
        """What an earlier run told of and could not publish; plans taken over from another
        study.
        """
        for number in sorted(plans_told(self.study)):
            self.publish(number)


def _name(number: int) -> str:
    return f"trials/{number}"
