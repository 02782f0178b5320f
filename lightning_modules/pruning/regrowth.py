"""Regrowth: rules that move a mask while the network trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from lightning_modules.errors import ConfigError


class Regrowth(Protocol):
    """The new mask; all tensors have one shape, progress lies in [0, 1], random choices come from `generator`.

    `kept` are the weights that the plan keeps of the tensor. `every` are the optimizer steps between two moves. `dense`
    says that pruned weights go on being trained under the mask, so that they can come back with what they have learnt;
    otherwise they come back as zeros.
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
    """Drop the smallest kept weights and grow as many others; the number kept never changes.

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
        """Kept weights with the smallest magnitude make room for pruned ones with the highest `growth`."""
        share = 0.5 * self.fraction * (1.0 + math.cos(math.pi * min(1.0, progress / self.end)))
        moved = min(round(share * int(mask.sum())), int((~mask).sum()))
        if moved == 0:
            return mask
        flat, kept = mask.flatten().clone(), mask.flatten()
        size = weight.detach().abs().flatten().masked_fill(~kept, math.inf)
        dropped = torch.argsort(size, stable=True)[:moved]
        wanted = growth.flatten().masked_fill(
            kept, -math.inf
        )  # what is dropped now does not come back now
        grown = torch.argsort(wanted, descending=True, stable=True)[:moved]
        flat[dropped] = False
        flat[grown] = True
        return flat.reshape(mask.shape)


@dataclass(frozen=True)
class RigL(_Exchange):
    """Grow where the dense gradient is largest (Evci et al. 2020, algorithm 1)."""

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
    """Grow at random: sparse evolutionary training (Mocanu et al. 2018, algorithm 1)."""

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
    """Dynamic network surgery (Guo et al. 2016, eq. 3): two thresholds with a band between them where nothing changes.

    Both lie around the magnitude t from which on the plan's number of weights would be kept: below (1 - margin) t a
    weight goes, from (1 + margin) t on it comes back. So the number kept may differ from the plan's by what lies in the
    band. The chance of a move falls linearly from 1 to 0 at progress `end` (section 3.3), so that the rest can settle.
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
        if float(torch.rand((), generator=generator)) >= 1.0 - progress / self.end:
            return mask
        size = weight.detach().abs()
        threshold = size.flatten().kthvalue(min(mask.numel(), mask.numel() - kept + 1)).values
        return (mask & (size >= (1.0 - self.margin) * threshold)) | (
            size >= (1.0 + self.margin) * threshold
        )
