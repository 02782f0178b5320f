"""What the dense model teaches beyond the training data: copies with samples mixed by pairs.

The mixture is mixup (Zhang et al. 2018, equation 1, with uniformly drawn shares). The teacher sees
the same mixtures as the student (Beyer et al. 2022, *Knowledge distillation: A good teacher is
patient and consistent*).
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
from lightning_modules.tasks.whole import network_of

OUTPUTS_BATCH = 256
"""Samples of a copy that go through the dense model at once."""


class Lesson(NamedTuple):
    """Batches to train on, and the teacher of these batches.

    Targets are class shares, shape (N, classes).
    """

    batches: Iterable[Any]
    teacher: Teacher


class Mixing:
    """Makes lessons of the training data of `data` and mixed copies of it.

    `task` holds the dense model. `cached` is its outputs on the data itself, shape (n, classes).
    `seed` decides what is mixed. `seconds` is the time of one pass of the dense model over the
    data.

    With `cached`, samples look the same each time, and so do the mixtures. Copy k does not depend
    on the number of copies, and the dense model's outputs on it are computed once. Without
    `cached` (the data is augmented), samples are mixed anew within each batch, and the dense model
    runs on each batch.
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
        self.task = task
        self.data = data
        self.cached = cached
        self.device = device
        self.seed = seed
        self.seconds = seconds
        self._copies: Copies | None = None

    def affordable(self, seconds: float) -> int:
        """The number of copies whose dense outputs take these seconds to compute.

        Zero where mixtures are not the same twice, or where nothing can be mixed.
        """
        if self.cached is None:
            return 0
        first_batch = next(iter(self.data.ordered_batches()))
        if not mixable(first_batch[0]):
            return 0
        return int(seconds / max(self.seconds, 1e-6))

    def __call__(self, copies: int, seed: int) -> Lesson:
        """The data and `copies` copies of it, shuffled together by `seed`."""
        model: Any = network_of(self.task)
        if self.cached is None:
            train = self.data.train_batches(seed)
            share = copies / (copies + 1)
            fresh = FreshMixtures(train, share, self.data.num_classes, seed)
            return Lesson(fresh, teacher(model, None))
        self.prepare(copies)
        assert self._copies is not None
        first_batch = next(iter(self.data.train_batches(seed)))
        shuffled = CopiesBatches(self._copies, copies, len(first_batch[0]), seed)
        return Lesson(shuffled, teacher(model, self._copies.outputs, index_of))

    def prepare(self, copies: int) -> None:
        """Compute the dense outputs on those of the first `copies` copies that have none yet."""
        if self.cached is None or copies == 0:
            return
        self._copies = self._copies or Copies(self.data, self.cached, self.seed)
        while self._copies.made < copies:
            self._copies.add(self.task, self.device)


class Copies:
    """The data by index, followed by copy after copy.

    Index k n + i is sample i of the n, mixed with the partner that copy k has drawn for it. Copy 0
    is the data itself.
    """

    def __init__(self, data: Data, outputs: Tensor, seed: int) -> None:
        inputs = []
        targets = []
        places = []
        for batch in data.ordered_batches():
            inputs.append(batch[0])
            targets.append(batch[1])
            places.append(batch[2])
        _require_floats(inputs[0])
        order = torch.cat(places).argsort()
        self.inputs = torch.cat(inputs)[order]
        self.targets = shares_of(torch.cat(targets)[order], data.num_classes)
        self.partner = torch.arange(len(order))
        self.share = torch.ones(len(order))
        self.outputs = outputs
        self.seed = seed
        self.made = 0

    def add(self, task: LightningModule, device: torch.device) -> None:
        """Draw one more copy and compute the dense outputs on it."""
        n = len(self.inputs)
        generator = torch.Generator().manual_seed(self.seed + self.made)
        self.partner = torch.cat([self.partner, torch.randperm(n, generator=generator)])
        self.share = torch.cat([self.share, torch.rand(n, generator=generator)])
        self.made += 1
        outputs = dense_outputs(task, self._batches_of(self.made), index_of, device)
        assert outputs is not None
        self.outputs = torch.cat([self.outputs, outputs])

    def _batches_of(self, copy: int) -> Iterator[list[Tensor]]:
        """The batches of one copy, with indices that count from the copy's first sample."""
        n = len(self.inputs)
        indices = torch.arange(copy * n, (copy + 1) * n)
        for index in indices.split(OUTPUTS_BATCH):
            inputs, targets, _ = self.batch(index)
            yield [inputs, targets, index - copy * n]

    def batch(self, index: Tensor) -> list[Tensor]:
        """Inputs, class shares and `index` itself, for an index of shape (N,)."""
        one = index % len(self.inputs)
        other = self.partner[index]
        inputs, targets = _mixed(self.inputs, self.targets, one, other, self.share[index])
        return [inputs, targets, index]


class CopiesBatches:
    """Full batches of the data and its first `count` copies, shuffled anew at each iteration."""

    def __init__(self, copies: Copies, count: int, size: int, seed: int) -> None:
        self.copies = copies
        self.samples = (count + 1) * len(copies.inputs)
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return max(1, self.samples // self.size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(self.samples, generator=self.generator)
        full = order.split(self.size)[: len(self)]
        return map(self.copies.batch, full)


class FreshMixtures:
    """`batches` in which about a `share` of the samples is mixed with others of the batch."""

    def __init__(self, batches: Any, share: float, classes: int, seed: int) -> None:
        self.batches = batches
        self.share = share
        self.classes = classes
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for inputs, targets, *rest in self.batches:
            _require_floats(inputs)
            n = len(inputs)
            own_share = torch.rand(n, generator=self.generator)
            stays_pure = torch.rand(n, generator=self.generator) >= self.share
            own_share[stays_pure] = 1.0
            other = torch.randperm(n, generator=self.generator)
            shares = shares_of(targets, self.classes)
            mixed = _mixed(inputs, shares, torch.arange(n), other, own_share)
            yield [*mixed, *rest]


def index_of(batch: Any) -> Tensor | None:
    """The index of each sample: the third entry of a batch that has one."""
    if isinstance(batch, list | tuple) and len(batch) > 2:
        return batch[2]
    return None


def shares_of(targets: Tensor, classes: int) -> Tensor:
    """Class indices as shares of 1 and 0, shape (N, classes); float targets stay as they are."""
    if targets.is_floating_point():
        return targets
    return F.one_hot(targets, classes).float()


def mixable(inputs: Any) -> bool:
    """Whether inputs can be added up: one tensor of floats."""
    return isinstance(inputs, Tensor) and inputs.is_floating_point()


def _require_floats(inputs: Any) -> None:
    if mixable(inputs):
        return
    kind = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
    raise ConfigError(
        "phases.finetune.distillation.mixed needs inputs that are one tensor of floats, "
        f"to add them up; got {kind}: distillation.mixed=0"
    )


def _mixed(
    inputs: Tensor, targets: Tensor, one: Tensor, other: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """share x sample `one` + (1 - share) x sample `other`, of inputs and of targets alike."""

    def between(values: Tensor) -> Tensor:
        over_samples = (-1, *[1] * (values.dim() - 1))
        weight = share.to(values.dtype).view(over_samples)
        return torch.lerp(values[other], values[one], weight)

    return between(inputs), between(targets)
