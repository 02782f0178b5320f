"""What the phases need of a data module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from lightning_modules.errors import ConfigError

LOADERS = ("setup", "train_batches", "ordered_batches", "val_dataloader", "test_dataloader")


class Data(Protocol):
    """Batches are whatever the task's steps take. `train_batches` depends on its seed alone.

    Optional: `num_classes`, for tasks that ask for it, and `sample_index(batch)`, the index of each sample in the
    training data, shape (N,). The index says that a sample always looks the same, so that the dense model's outputs on
    it may be kept; without the method the dense model runs along.
    """

    def setup(self, stage: str) -> None: ...

    def train_batches(self, seed: int) -> Iterable[Any]:
        """Shuffled training batches, other ones each time they are iterated; they have a length."""
        ...

    def ordered_batches(self) -> Iterable[Any]:
        """The training data once, in its own order, as the model sees it when evaluated."""
        ...

    def val_dataloader(self) -> Iterable[Any]: ...

    def test_dataloader(self) -> Iterable[Any]: ...


def set_up(data: Any) -> None:
    """Read and split the data, as Lightning's Trainer has it done: for training and validation, then for the test."""
    if callable(prepare := getattr(data, "prepare_data", None)):
        prepare()
    for stage in ("fit", "test"):
        data.setup(stage)


def check_data(data: Any) -> None:
    """Errors: ConfigError for data without one of the loaders, or with several in the place of one."""
    if missing := [name for name in LOADERS if not callable(getattr(data, name, None))]:
        raise ConfigError(
            f"data must have the methods {', '.join(LOADERS)} (lightning_modules/data/contract.py); "
            f"{type(data).__name__} has no {', '.join(missing)}"
        )
    if isinstance(loader := data.val_dataloader(), list | tuple | dict):
        raise ConfigError(
            f"a loader is one iterable of batches, such as a DataLoader; {type(data).__name__}.val_dataloader gives a "
            f"{type(loader).__name__}, which Lightning takes for several loaders: join them into one"
        )


def sample_index(data: Any, batch: Any) -> Tensor | None:
    """The index of each sample in the training data; None where the data does not tell."""
    known = getattr(data, "sample_index", None)
    return None if known is None else known(batch)
