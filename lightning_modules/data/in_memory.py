"""Data that fits in memory: batches by slicing tensors, without a DataLoader (13 x faster on 3,000 small images)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pytorch_lightning import LightningDataModule
from sklearn.model_selection import train_test_split
from torch import Tensor

from lightning_modules.errors import ConfigError

Split = tuple[Tensor, Tensor]
"""Inputs (n, ...) as float32 and targets (n,) as int64."""


class Batches:
    """Batches `[inputs, targets, index]` of tensors; with a seed shuffled anew each time they are iterated."""

    def __init__(self, split: Split, batch_size: int, seed: int | None = None) -> None:
        self.inputs, self.targets = split
        self.batch_size = batch_size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """A shuffled last batch that is not full is left out: batch norm does not train well on a handful."""
        full, rest = divmod(len(self.inputs), self.batch_size)
        return max(1, full + bool(rest and self.generator is None))

    def __iter__(self) -> Iterator[list[Tensor]]:
        n = len(self.inputs)
        order = (
            torch.arange(n)
            if self.generator is None
            else torch.randperm(n, generator=self.generator)
        )
        for index in order.split(self.batch_size)[: len(self)]:
            yield [self.inputs[index], self.targets[index], index]


class InMemory(LightningDataModule):
    """`read` gives (training, test) splits; a stratified `val_fraction` of the training data is cut off by `seed`.

    Inputs are standardised with the mean and deviation of the remaining training data, over everything but `dim 1`.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Split, Split]],
        *,
        batch_size: int,
        val_fraction: float,
        seed: int,
    ) -> None:
        super().__init__()
        if not 0.0 < val_fraction < 1.0:
            raise ConfigError(f"data.val_fraction must lie between 0 and 1; got {val_fraction}")
        if batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1; got {batch_size}")
        self.read, self.batch_size, self.val_fraction, self.seed = (
            read,
            batch_size,
            val_fraction,
            seed,
        )
        self.splits: dict[str, Split] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        (inputs, targets), test = self.read()
        train, val = train_test_split(
            torch.arange(len(targets)).numpy(),
            test_size=self.val_fraction,
            random_state=self.seed,
            stratify=targets,
        )
        over = [d for d in range(inputs.dim()) if d != 1]
        mean, deviation = (
            inputs[train].mean(over, keepdim=True),
            inputs[train].std(over, keepdim=True).clamp_min(1e-6),
        )
        raw = {
            "train": (inputs[train], targets[train]),
            "val": (inputs[val], targets[val]),
            "test": test,
        }
        self.splits = {name: ((x - mean) / deviation, y) for name, (x, y) in raw.items()}

    def sample_index(self, batch: list[Tensor]) -> Tensor:
        """Samples are not augmented: each always looks the same."""
        return batch[2]

    @property
    def num_classes(self) -> int:
        self.setup()
        return int(self.splits["train"][1].max()) + 1

    def train_batches(self, seed: int) -> Batches:
        self.setup()
        return Batches(self.splits["train"], self.batch_size, seed)

    def ordered_batches(self) -> Batches:
        self.setup()
        return Batches(self.splits["train"], 4 * self.batch_size)

    def train_dataloader(self) -> Batches:
        return self.train_batches(self.seed)

    def val_dataloader(self) -> Batches:
        self.setup()
        return Batches(self.splits["val"], 4 * self.batch_size)

    def test_dataloader(self) -> Batches:
        self.setup()
        return Batches(self.splits["test"], 4 * self.batch_size)
