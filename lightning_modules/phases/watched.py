"""Work that can be ended from inside: a function is called at every batch, and raises to end it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

Check = Callable[[], None]
"""Called at every batch; it raises where the work has to end."""


def never() -> None:
    """The check of work that nobody ends."""


def watched(batches: Iterable[Any], check: Check) -> Iterator[Any]:
    """Yields the batches, and calls `check` before each."""
    for batch in batches:
        check()
        yield batch


class WatchedBatches(list[Any]):
    """A list of batches that calls `check` before each batch, at every iteration."""

    def __init__(self, batches: Iterable[Any], check: Check) -> None:
        super().__init__(batches)
        self.check = check

    def __iter__(self) -> Iterator[Any]:
        return watched(super().__iter__(), self.check)


class Watched(Callback):
    """Calls `check` before every batch of training and of validation."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        self.check()

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int, loader: int = 0
    ) -> None:
        self.check()
