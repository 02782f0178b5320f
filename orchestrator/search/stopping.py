"""Stopping: which trials get another unit of finetuning. Networks are pruned; trials are stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_modules.errors import ConfigError


@dataclass(frozen=True)
class Standing:
    """Where a trial stood at one rung: validation loss (nats), quality drop against the dense model, FLOPs ratio."""

    trial: int
    rung: int
    flops_ratio: float
    loss: float
    quality_drop: float


class Stopping(Protocol):
    """The reason to stop the trial that stands at `mine`, or None to go on; `peers` are all earlier standings."""

    def __call__(self, mine: Standing, peers: Sequence[Standing]) -> str | None: ...


@dataclass(frozen=True)
class Never:
    """Every trial gets its full finetuning."""

    def __call__(self, mine: Standing, peers: Sequence[Standing]) -> str | None:
        return None


@dataclass(frozen=True)
class Band:
    """Compare only with trials of about the same cost: within `octaves` of FLOPs, at the same rung.

    A trial goes on when its validation loss is among the better `keep` share of its band. A band with fewer than
    `min_peers` others decides nothing. A trial that dominates its band (no peer with at most its FLOPs has a smaller
    loss) is never stopped, one that has lost more than `max_drop` of quality always is: exact costs alone would keep
    every tiny model on the front.
    """

    octaves: float = 0.5
    keep: float = 0.5
    min_peers: int = 3
    max_drop: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise ConfigError(f"stopping.keep must be a share in (0, 1]; got {self.keep}")
        if self.octaves <= 0.0 or self.min_peers < 1 or self.max_drop <= 0.0:
            raise ConfigError(
                "stopping needs octaves > 0, min_peers >= 1 and max_drop > 0; "
                f"got {self.octaves}, {self.min_peers} and {self.max_drop}"
            )

    def __call__(self, mine: Standing, peers: Sequence[Standing]) -> str | None:
        if mine.quality_drop > self.max_drop:
            return f"lost {mine.quality_drop:.3f} of quality, more than {self.max_drop:g}"
        band = [
            peer
            for peer in peers
            if peer.rung == mine.rung
            and peer.trial != mine.trial
            and abs(math.log2(peer.flops_ratio / mine.flops_ratio)) <= self.octaves
        ]
        if len(band) < self.min_peers:
            return None
        rivals = [peer for peer in band if peer.flops_ratio <= mine.flops_ratio]
        if all(mine.loss < peer.loss for peer in rivals):
            return None
        better = sum(peer.loss < mine.loss for peer in band)
        if better < self.keep * (len(band) + 1):
            return None
        return f"{better} of {len(band)} trials within {self.octaves:g} octaves had a lower loss at rung {mine.rung}"
