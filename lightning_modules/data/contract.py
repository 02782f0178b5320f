"""What the phases need of a data module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class Data(Protocol):
    """Batches are lists whose first two entries are inputs and targets, both with the batch in front.

    A third entry, where present, is the index of each sample in the training data; it says that a sample always looks
    the same, so that the dense model's outputs may be cached by it. `train_batches` depends on its seed alone.
    """

    num_classes: int
    input_shape: tuple[int, ...]

    def setup(self, stage: str | None = None) -> None: ...

    def train_batches(self, seed: int) -> Iterable[Any]:
        """Shuffled training batches, other ones each time they are iterated."""
        ...

    def ordered_batches(self) -> Iterable[Any]:
        """The training data once, in its own order, as the model sees it when evaluated."""
        ...

    def val_dataloader(self) -> Iterable[Any]: ...

    def test_dataloader(self) -> Iterable[Any]: ...
