"""Data that fits in memory, whose samples are tensors by name: texts, and sequences of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lightning_modules.data.in_memory import EVALUATION_FACTOR
from lightning_modules.errors import ConfigError

LABELS = "labels"
"""The name of the targets. All other names but the index are inputs of the network."""
INDEX = "index"
"""The name of each sample's place in its split."""

Samples = Mapping[str, Tensor]
"""By name a tensor (n, ...), one row for each sample."""


class NamedBatches:
    """Batches of samples by name, with the index of each sample.

    With a seed they are shuffled anew at each iteration, and a last batch that is not full is left
    out.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int | None = None) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        full, rest = divmod(len(self.samples[LABELS]), self.batch_size)
        takes_rest = rest > 0 and self.generator is None
        return max(1, full + takes_rest)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        count = len(self.samples[LABELS])
        order = torch.arange(count)
        if self.generator is not None:
            order = torch.randperm(count, generator=self.generator)
        for index in order.split(self.batch_size)[: len(self)]:
            batch = {name: values[index] for name, values in self.samples.items()}
            yield {**batch, INDEX: index}


class Named(LightningDataModule):
    """The samples that `read` returns for "train", "val" and "test".

    Each has `labels`: (n,) where a sample has a class.
    Errors: ConfigError for a `batch_size` below 1.
    """

    def __init__(
        self, read: Callable[[], Mapping[str, Samples]], batch_size: int, seed: int
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1; got {batch_size}")
        self.read = read
        self.batch_size = batch_size
        self.seed = seed
        self.splits: Mapping[str, Samples] = {}

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = self.read()

    def sample_index(self, batch: dict[str, Tensor]) -> Tensor:
        """Samples are not augmented: each always looks the same."""
        return batch[INDEX]

    @property
    def num_classes(self) -> int:
        """Errors: AttributeError where labels are not one class for each sample."""
        self.setup()
        labels = self.splits["train"][LABELS]
        if labels.dim() != 1:
            raise AttributeError("the labels are not one class for each sample")
        return int(labels.max()) + 1

    def train_batches(self, seed: int) -> NamedBatches:
        self.setup()
        return NamedBatches(self.splits["train"], self.batch_size, seed)

    def ordered_batches(self) -> NamedBatches:
        return self._evaluation_batches("train")

    def train_dataloader(self) -> NamedBatches:
        return self.train_batches(self.seed)

    def val_dataloader(self) -> NamedBatches:
        return self._evaluation_batches("val")

    def test_dataloader(self) -> NamedBatches:
        return self._evaluation_batches("test")

    def _evaluation_batches(self, name: str) -> NamedBatches:
        self.setup()
        return NamedBatches(self.splits[name], EVALUATION_FACTOR * self.batch_size)
