"""What the phases need of a data module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor

from lightning_modules.data.loaders import Loaders, SeededBatches, adapted
from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe

LOADERS = ("setup", "train_batches", "ordered_batches", "val_dataloader", "test_dataloader")
"""The methods that every data module has."""


class Data(Protocol):
    """Training, validation and test data.

    A LightningDataModule with its three loaders is adapted (`loaders.py`).
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


def ready_data(recipe: Recipe) -> Any:
    """The data of a recipe, read and split, with the methods of `Data`.

    Errors: ConfigError for data that cannot be used.
    """
    data = adapted(recipe.build())
    set_up(data)
    return data


def set_up(data: Any) -> None:
    """Read and split the data as Lightning's Trainer does: for training, then for the test."""
    prepare = getattr(data, "prepare_data", None)
    if callable(prepare):
        prepare()
    for stage in ("fit", "test"):
        data.setup(stage)


def check_data(data: Any) -> None:
    """Errors: ConfigError for data that lacks a method, or has several loaders, or no length.

    Test data is not touched."""
    kind = type(data.module if isinstance(data, Loaders) else data).__name__
    missing = [name for name in LOADERS if not callable(getattr(data, name, None))]
    if missing:
        raise ConfigError(
            f"data must have the methods {', '.join(LOADERS)} (lightning_modules/data/contract.py);"
            f" {kind} has no {', '.join(missing)}"
        )
    training = data.train_batches(0)
    train = "train_dataloader" if isinstance(data, Loaders) else "train_batches"
    check_one(f"{kind}.{train}", training)
    check_one(f"{kind}.val_dataloader", data.val_dataloader())
    _check_length(kind, training)


def check_one(name: str, loader: Any) -> None:
    """Errors: ConfigError for several loaders."""
    loader = loader.loader if isinstance(loader, SeededBatches) else loader
    several = isinstance(loader, list | tuple | dict | CombinedLoader)
    if several:
        raise ConfigError(
            f"a loader is one iterable of batches, such as a DataLoader; {name} "
            f"gives a {type(loader).__name__}, which Lightning takes for several loaders: join "
            "them into one"
        )


def _check_length(kind: str, batches: Any) -> None:
    """Errors: ConfigError for training data without a number of batches, or without a batch."""
    try:
        count = len(batches)
    except TypeError as error:
        raise ConfigError(
            f"the training data must have a length, which makes an epoch; that of {kind} has none: "
            "give its IterableDataset a __len__, the number of samples of a pass"
        ) from error
    if count == 0:
        raise ConfigError(
            f"the training data must have a batch; that of {kind} has none: a smaller batch size, "
            "or drop_last=False"
        )


def sample_index(data: Any, batch: Any) -> Tensor | None:
    """The index of each sample in the training data, shape (N,). None if the data has no index."""
    index = getattr(data, "sample_index", None)
    return None if index is None else index(batch)
