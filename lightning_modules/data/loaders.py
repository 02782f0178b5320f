"""A LightningDataModule as its user wrote it, as the data that the phases ask for."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from lightning_modules.errors import ConfigError

SEED_STRIDE = 7919
"""A prime: seeds of the passes of one loader are that far apart."""
_TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class Loaders:
    """The training, validation and test loaders of a LightningDataModule.

    Each pass over the training data follows from the seed and the number of the pass: its order,
    and what augmentation draws, in this process and in workers. It neither reads nor moves the
    random state of the training. Validation and test data are the same at each pass. Everything
    else is the module's own.
    """

    def __init__(self, module: LightningDataModule) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # while a copy is made
            raise AttributeError(name)
        return getattr(self.module, name)

    def train_batches(self, seed: int) -> SeededBatches:
        return SeededBatches(self.module.train_dataloader(), seed)

    def ordered_batches(self) -> SeededBatches:
        return self.train_batches(0)

    def val_dataloader(self) -> SeededBatches:
        return SeededBatches(self.module.val_dataloader(), 0, same=True)

    def test_dataloader(self) -> SeededBatches:
        return SeededBatches(self.module.test_dataloader(), 0, same=True)


class SeededBatches:
    """The batches of a loader, whose random numbers follow from `seed`.

    Each pass is another one, unless all are the `same`.
    """

    def __init__(self, loader: Any, seed: int, same: bool = False) -> None:
        self.loader = loader
        self.seed = seed
        self.same = same
        self.passes = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        number = 0 if self.same else self.passes
        self.passes += 1
        state = _RandomState(self.seed + SEED_STRIDE * number)
        with state.in_place():
            _seed_generators(self.loader, self.seed + SEED_STRIDE * number)
            _tell_epoch(self.loader, number)
            batches = iter(self.loader)
        while True:
            with state.in_place():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch


class _RandomState:
    """A state of the three random generators that augmentation may draw from.

    Its owner puts it in the place of the program's own, and takes it back with what was drawn.
    """

    def __init__(self, seed: int) -> None:
        with _kept():
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            self.states = _states()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with _kept():
            _restore(self.states)
            yield
            self.states = _states()


@contextmanager
def _kept() -> Iterator[None]:
    """Puts the program's random states back behind the `with` block."""
    states = _states()
    try:
        yield
    finally:
        _restore(states)


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _restore(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def _seed_generators(loader: Any, seed: int) -> None:
    """Seed the generators that a loader and its samplers own."""
    for owner in _with_samplers(loader):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _tell_epoch(loader: Any, number: int) -> None:
    for owner in _with_samplers(loader):
        if callable(getattr(owner, "set_epoch", None)):
            owner.set_epoch(number)


def _with_samplers(loader: Any) -> list[Any]:
    batches = getattr(loader, "batch_sampler", None)
    return [loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]


def adapted(data: Any) -> Any:
    """Data with the methods that the phases ask for; a LightningDataModule may lack two of them.

    Errors: ConfigError for loaders that cannot be used, with the reason.
    """
    if not isinstance(data, LightningDataModule) or hasattr(data, "train_batches"):
        return data
    kind = type(data).__name__
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if getattr(type(data), name) is getattr(LightningDataModule, name):
            raise ConfigError(
                f"a LightningDataModule must have train_dataloader, val_dataloader and "
                f"test_dataloader: the search is judged on validation data, and its result "
                f"measured on test data; {kind} has no {name}"
            )
    for name in _TRANSFERS:
        if inspect.getattr_static(data, name) is not getattr(LightningDataModule, name):
            raise ConfigError(
                f"{kind}.{name} would not be called: move it to the LightningModule, which may "
                "have it, too, or into the dataset"
            )
    return Loaders(data)
