"""What the phases need of a data module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from lightning_modules.errors import ConfigError

LOADERS = ("setup", "train_batches", "ordered_batches", "val_dataloader", "test_dataloader")
"""The methods that every data module has."""


class Data(Protocol):
    """Training, validation and test data.

    Batches are whatever the task's steps take. `train_batches` depends on its seed alone.

    Optional:
    - `num_classes`, for tasks that ask for it;
    - `sample_index(batch)`, the index of each sample in the training data, shape (N,). A module
      with this method promises that a sample always looks the same, so that the dense model's
      outputs on it may be cached. Without the method the dense model runs on each batch.
    """

    def setup(self, stage: str) -> None: ...

    def train_batches(self, seed: int) -> Iterable[Any]:
        """Shuffled training batches, in another order at each iteration; they have a length."""
        ...

    def ordered_batches(self) -> Iterable[Any]:
        """The training data once, in its own order, as the model sees it in evaluation."""
        ...

    def val_dataloader(self) -> Iterable[Any]: ...

    def test_dataloader(self) -> Iterable[Any]: ...


def set_up(data: Any) -> None:
    """Read and split the data as Lightning's Trainer does: for training, then for the test."""
    prepare = getattr(data, "prepare_data", None)
    if callable(prepare):
        prepare()
    for stage in ("fit", "test"):
        data.setup(stage)


def check_data(data: Any) -> None:
    """Errors: ConfigError for data that lacks a method, or whose validation has several loaders."""
    kind = type(data).__name__
    missing = [name for name in LOADERS if not callable(getattr(data, name, None))]
    if missing:
        raise ConfigError(
            f"data must have the methods {', '.join(LOADERS)} (lightning_modules/data/contract.py);"
            f" {kind} has no {', '.join(missing)}"
        )
    loader = data.val_dataloader()
    if isinstance(loader, list | tuple | dict):
        raise ConfigError(
            f"a loader is one iterable of batches, such as a DataLoader; {kind}.val_dataloader "
            f"gives a {type(loader).__name__}, which Lightning takes for several loaders: join "
            "them into one"
        )


def sample_index(data: Any, batch: Any) -> Tensor | None:
    """The index of each sample in the training data, shape (N,). None if the data has no index."""
    index = getattr(data, "sample_index", None)
    return None if index is None else index(batch)
