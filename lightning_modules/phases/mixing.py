"""What the dense model teaches beyond the training data: copies of it with samples mixed by pairs.

Mixup (Zhang et al. 2018, equation 1, shares drawn uniformly), whose mixtures the teacher sees as the student does
(Beyer et al. 2022, *Knowledge distillation: A good teacher is patient and consistent*).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_modules.data.contract import Data
from lightning_modules.errors import ConfigError
from lightning_modules.phases.distillation import Teacher, dense_outputs, teacher


class Lesson(NamedTuple):
    """Batches to train on and the teacher that knows them; targets are class shares, shape (N, classes)."""

    batches: Iterable[Any]
    teacher: Teacher


class Mixing:
    """Lessons on the training data of `data` with copies of it, mixed as `seed` says; `task` holds the dense model.

    Where samples look the same each time, so do the mixtures: copy k is the same whatever the number of copies, and
    the outputs of the dense model on it are computed once. `cached` are those on the data itself, shape (n, classes).
    Without them (augmented data) samples are mixed within each batch, other ones each time, and the dense model runs
    along. `seconds` is what a pass of the dense model over the data takes.
    Errors: ConfigError for inputs that are not one tensor of floats.
    """

    def __init__(
        self,
        task: LightningModule,
        data: Data,
        cached: Tensor | None,
        device: torch.device,
        seed: int,
        seconds: float = 0.0,
    ) -> None:
        self.task, self.data, self.cached, self.device = task, data, cached, device
        self.seed, self.seconds = seed, seconds
        self._copies: Copies | None = None

    def affordable(self, seconds: float) -> int:
        """Copies that these seconds pay for; none where mixtures are not the same twice, or nothing can be mixed."""
        if self.cached is None or not mixable(next(iter(self.data.ordered_batches()))[0]):
            return 0
        return int(seconds / max(self.seconds, 1e-6))

    def __call__(self, copies: int, seed: int) -> Lesson:
        """Batches by `seed` of the data and `copies` copies of it, shuffled together."""
        if self.cached is None:
            share = copies / (copies + 1)
            fresh = FreshMixtures(self.data.train_batches(seed), share, self.data.num_classes, seed)
            return Lesson(fresh, teacher(self.task.model, None))  # type: ignore[arg-type]
        self.prepare(copies)
        assert self._copies is not None
        size = len(next(iter(self.data.train_batches(seed)))[0])
        shuffled = CopiesBatches(self._copies, copies, size, seed)
        return Lesson(shuffled, teacher(self.task.model, self._copies.outputs, index_of))  # type: ignore[arg-type]

    def prepare(self, copies: int) -> None:
        """Compute the dense outputs on copies that have none yet."""
        if self.cached is None or copies == 0:
            return
        self._copies = self._copies or Copies(self.data, self.cached, self.seed)
        while self._copies.made < copies:
            self._copies.add(self.task, self.device)


class Copies:
    """The data by index, then copy after copy: index k n + i mixes sample i with another one of copy k's choice."""

    def __init__(self, data: Data, outputs: Tensor, seed: int) -> None:
        inputs, targets, places = zip(
            *((b[0], b[1], b[2]) for b in data.ordered_batches()), strict=True
        )
        _require_floats(inputs[0])
        order = torch.cat(places).argsort()
        self.inputs = torch.cat(inputs)[order]
        self.targets = shares_of(torch.cat(targets)[order], data.num_classes)
        self.partner, self.share = torch.arange(len(order)), torch.ones(len(order))
        self.outputs, self.seed, self.made = outputs, seed, 0

    def add(self, task: LightningModule, device: torch.device) -> None:
        """One more copy, and the dense outputs on it."""
        n = len(self.inputs)
        drawn = torch.Generator().manual_seed(self.seed + self.made)
        self.partner = torch.cat([self.partner, torch.randperm(n, generator=drawn)])
        self.share = torch.cat([self.share, torch.rand(n, generator=drawn)])
        self.made += 1
        found = torch.arange(self.made * n, (self.made + 1) * n)
        batches = ([*self.batch(index)[:2], index - self.made * n] for index in found.split(256))
        outputs = dense_outputs(task, batches, index_of, device)
        assert outputs is not None
        self.outputs = torch.cat([self.outputs, outputs])

    def batch(self, index: Tensor) -> list[Tensor]:
        one, other = index % len(self.inputs), self.partner[index]
        return [*_mixed(self.inputs, self.targets, one, other, self.share[index]), index]


class CopiesBatches:
    """Full batches of the data and the first `count` copies, shuffled anew each time they are iterated."""

    def __init__(self, copies: Copies, count: int, size: int, seed: int) -> None:
        self.copies, self.samples, self.size = copies, (count + 1) * len(copies.inputs), size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return max(1, self.samples // self.size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(self.samples, generator=self.generator)
        return map(self.copies.batch, order.split(self.size)[: len(self)])


class FreshMixtures:
    """`batches` with about a `share` of the samples of each mixed with others of the batch."""

    def __init__(self, batches: Any, share: float, classes: int, seed: int) -> None:
        self.batches, self.share, self.classes = batches, share, classes
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for inputs, targets, *rest in self.batches:
            _require_floats(inputs)
            n = len(inputs)
            kept = torch.rand(n, generator=self.generator)
            kept[torch.rand(n, generator=self.generator) >= self.share] = 1.0
            other = torch.randperm(n, generator=self.generator)
            yield [
                *_mixed(inputs, shares_of(targets, self.classes), torch.arange(n), other, kept),
                *rest,
            ]


def index_of(batch: Any) -> Tensor | None:
    """The index of each sample: the third entry, where there is one."""
    return batch[2] if isinstance(batch, list | tuple) and len(batch) > 2 else None


def shares_of(targets: Tensor, classes: int) -> Tensor:
    """Class indices as shares of 1 and 0, shape (N, classes); targets that are floats stay as they are."""
    return targets if targets.is_floating_point() else F.one_hot(targets, classes).float()


def mixable(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.is_floating_point()


def _require_floats(inputs: Any) -> None:
    if not mixable(inputs):
        found = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ConfigError(
            "phases.finetune.distillation.mixed needs inputs that are one tensor of floats, to add them up; "
            f"got {found}: distillation.mixed=0"
        )


def _mixed(
    inputs: Tensor, targets: Tensor, one: Tensor, other: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    def between(values: Tensor) -> Tensor:
        along = share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
        return torch.lerp(values[other], values[one], along)

    return between(inputs), between(targets)
