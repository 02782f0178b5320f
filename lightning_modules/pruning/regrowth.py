"""Regrowth: rules that change a mask while the network trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from lightning_modules.errors import ConfigError


class Regrowth(Protocol):
    """Returns the new mask, of the shape of all its tensors.

    `kept` is the number of weights that the plan keeps of the tensor. `progress` lies in [0, 1].
    Random choices come from `generator`. `every` is the number of optimizer steps between two
    changes. `dense` says that pruned weights keep being trained under the mask, so that they come
    back with what they have learnt; otherwise they come back as zeros.
    """

    @property
    def every(self) -> int: ...

    @property
    def dense(self) -> bool: ...

    def __call__(
        self,
        weight: Tensor,
        mask: Tensor,
        gradient: Tensor,
        kept: int,
        progress: float,
        generator: Generator,
    ) -> Tensor: ...


@dataclass(frozen=True)
class _Exchange:
    """Drops the smallest kept weights and grows as many others; the number kept never changes.

    The exchanged fraction falls along a cosine from `fraction` to 0 at progress `end`.
    """

    dense: ClassVar[bool] = False
    every: int = 4
    fraction: float = 0.3
    end: float = 0.75

    def __post_init__(self) -> None:
        if self.every < 1 or not 0.0 < self.fraction <= 1.0 or not 0.0 < self.end <= 1.0:
            raise ConfigError(
                "method.regrowth needs every >= 1, 0 < fraction <= 1 and 0 < end <= 1; "
                f"got {self.every}, {self.fraction} and {self.end}"
            )

    def _exchanged(self, weight: Tensor, mask: Tensor, growth: Tensor, progress: float) -> Tensor:
        """Replaces the kept weights of least magnitude by the pruned ones of highest `growth`."""
        angle = math.pi * min(1.0, progress / self.end)
        share = 0.5 * self.fraction * (1.0 + math.cos(angle))
        n_kept = int(mask.sum())
        n_pruned = int((~mask).sum())
        moved = min(round(share * n_kept), n_pruned)
        if moved == 0:
            return mask
        kept = mask.flatten()
        magnitude = weight.detach().abs().flatten().masked_fill(~kept, math.inf)
        dropped = torch.argsort(magnitude, stable=True)[:moved]
        # kept weights never grow, so that no weight is dropped and grown at once
        candidates = growth.flatten().masked_fill(kept, -math.inf)
        grown = torch.argsort(candidates, descending=True, stable=True)[:moved]
        exchanged = kept.clone()
        exchanged[dropped] = False
        exchanged[grown] = True
        return exchanged.reshape(mask.shape)


@dataclass(frozen=True)
class RigL(_Exchange):
    """Grows where the dense gradient is largest (Evci et al. 2020, algorithm 1)."""

    def __call__(
        self,
        weight: Tensor,
        mask: Tensor,
        gradient: Tensor,
        kept: int,
        progress: float,
        generator: Generator,
    ) -> Tensor:
        return self._exchanged(weight, mask, gradient.abs(), progress)


@dataclass(frozen=True)
class RandomRegrowth(_Exchange):
    """Grows at random: sparse evolutionary training (Mocanu et al. 2018, algorithm 1)."""

    def __call__(
        self,
        weight: Tensor,
        mask: Tensor,
        gradient: Tensor,
        kept: int,
        progress: float,
        generator: Generator,
    ) -> Tensor:
        growth = torch.rand(weight.shape, generator=generator).to(weight.device)
        return self._exchanged(weight, mask, growth, progress)


@dataclass(frozen=True)
class Surgery:
    """Dynamic network surgery (Guo et al. 2016, eq. 3): two thresholds with a band between them.

    Both thresholds lie around the magnitude t that keeps the plan's number of weights. A weight
    below (1 - margin) t is pruned; one from (1 + margin) t on comes back; in the band nothing
    changes. So the number kept may differ from the plan's by the weights in the band. The chance of
    a change falls linearly from 1 to 0 at progress `end` (section 3.3), so that the rest of the
    training runs under a fixed mask.
    """

    dense: ClassVar[bool] = True
    every: int = 4
    margin: float = 0.1
    end: float = 0.75

    def __post_init__(self) -> None:
        if self.every < 1 or not 0.0 <= self.margin < 1.0 or not 0.0 < self.end <= 1.0:
            raise ConfigError(
                "method.regrowth needs every >= 1, 0 <= margin < 1 and 0 < end <= 1; "
                f"got {self.every}, {self.margin} and {self.end}"
            )

    def __call__(
        self,
        weight: Tensor,
        mask: Tensor,
        gradient: Tensor,
        kept: int,
        progress: float,
        generator: Generator,
    ) -> Tensor:
        chance = 1.0 - progress / self.end
        if float(torch.rand((), generator=generator)) >= chance:
            return mask
        magnitude = weight.detach().abs()
        rank = min(mask.numel(), mask.numel() - kept + 1)
        threshold = magnitude.flatten().kthvalue(rank).values
        stays = mask & (magnitude >= (1.0 - self.margin) * threshold)
        returns = magnitude >= (1.0 + self.margin) * threshold
        return stays | returns
