"""Stopping: which trials get another round of finetuning.

Networks are pruned; trials are stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import moocore
import numpy as np
import numpy.typing as npt

from lightning_modules.errors import ConfigError

BAND_OCTAVES = 0.5
"""Octaves of FLOPs to either side within which trials are of about the same cost."""
BAND_PEERS = 3
"""A band with fewer other trials decides nothing."""
RUNG_PEERS = 6
"""A rung with fewer other trials decides nothing; it mixes all costs, so it needs more than a band.
"""
LEAST_COMPLETED = 0.15
"""Share of the search's trials that is completed before others are stopped.

TPE's good set, the best tenth, would fill with stopped ones below that share.
"""


@dataclass(frozen=True)
class Standing:
    """Where a trial stood at one rung.

    `loss` is the validation loss in nats, `quality_drop` the drop against the dense model.
    """

    trial: int
    rung: int
    flops_ratio: float
    loss: float
    quality_drop: float


@dataclass(frozen=True)
class Tally:
    """How many trials of the search have ended by themselves, and how many of them completed.

    The chain is left out.
    """

    trials: int = 0
    completed: int = 0

    def owes(self, least: float) -> bool:
        """Whether too few trials would be completed if one more did not complete.

        `least` is the share of them that must be completed.
        """
        return self.completed < least * (self.trials + 1)


class Stopping(Protocol):
    """The reason to stop the trial at `standing`, or None to go on.

    `peers` are all earlier standings.
    """

    def __call__(
        self, standing: Standing, peers: Sequence[Standing], tally: Tally
    ) -> str | None: ...


@dataclass(frozen=True)
class Never:
    """Every trial gets its full finetuning."""

    def __call__(self, standing: Standing, peers: Sequence[Standing], tally: Tally) -> str | None:
        return None


@dataclass(frozen=True)
class Band:
    """Compare only with trials of about the same cost: half an octave of FLOPs, same rung.

    A trial goes on when its validation loss is among the better `keep` share of its band. Each loss
    is counted from the band's own trend over log FLOPs; raw losses would favour the largest models.
    The trend never rises with the cost, so a trial that dominates its whole band goes on: nobody is
    behind a trial that it dominates. A trial on the band's front with both a cheaper and a more
    expensive neighbour goes on, too. At the two ends of the front, being non-dominated says little:
    each new smallest model is on it by a cost that is exact, each new largest one by a loss that
    falls with the cost. There half as many are stopped.

    Nobody is stopped by a band of few others, or while few of the search's trials are completed. A
    trial that lost more than `max_drop` of quality is stopped even then: completed, it would stand
    on the front by its cost alone.
    """

    keep: float = 0.5
    max_drop: float = 0.3

    def __post_init__(self) -> None:
        _check(self.keep, self.max_drop)

    def __call__(self, standing: Standing, peers: Sequence[Standing], tally: Tally) -> str | None:
        reason = _lost(standing, self.max_drop)
        if reason:
            return reason
        band = []
        distances = []
        for peer in _at_rung(standing, peers):
            distance = math.log2(peer.flops_ratio / standing.flops_ratio)
            if abs(distance) <= BAND_OCTAVES:
                band.append(peer)
                distances.append(distance)
        if len(band) < BAND_PEERS or tally.owes(LEAST_COMPLETED):
            return None
        octaves = np.array(distances)
        losses = np.array([peer.loss for peer in band])
        excess = losses - trend(octaves, losses) * octaves
        better = int((excess < standing.loss).sum())
        keep = self.keep
        on_front = (losses[octaves <= 0.0] > standing.loss).all()
        if on_front:
            if (octaves < 0.0).any() and (octaves > 0.0).any():
                return None
            keep = 0.5 * (1.0 + keep)
        if better < keep * (len(band) + 1):
            return None
        return (
            f"{better} of {len(band)} trials within {BAND_OCTAVES:g} octaves had a lower loss for "
            f"their cost at rung {standing.rung}"
        )


@dataclass(frozen=True)
class Pareto:
    """Compare with all trials at the same rung by non-dominated sorting over (loss, FLOPs).

    This is MO-ASHA (arXiv 2106.12639). A trial goes on when it is among the better `keep` share:
    trials are ordered by rank first, and within a rank by the hypervolume that the front of this
    rank would lose with the trial (larger is better). The corner of the hypervolume is the worst
    loss and the largest log FLOPs of the rung, so being the smallest or the largest counts for
    nothing. `max_drop` is as in `Band`.
    """

    keep: float = 0.5
    max_drop: float = 0.3

    def __post_init__(self) -> None:
        _check(self.keep, self.max_drop)

    def __call__(self, standing: Standing, peers: Sequence[Standing], tally: Tally) -> str | None:
        reason = _lost(standing, self.max_drop)
        if reason:
            return reason
        rung = [standing, *_at_rung(standing, peers)]
        if len(rung) <= RUNG_PEERS or tally.owes(LEAST_COMPLETED):
            return None
        points = np.array([[other.loss, math.log2(other.flops_ratio)] for other in rung])
        before = places(points)[0]
        if before < self.keep * len(rung):
            return None
        return (
            f"{before} of {len(rung) - 1} trials were before it in loss and FLOPs together at "
            f"rung {standing.rung}"
        )


def places(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many points are before each one.

    A point is before another if its rank is lower, or the same and its own hypervolume is larger.
    `points` has shape (n, 2), both columns to be small; equal points have the same place.
    """
    # ranks, not an order: point i has rank ranks[i]
    ranks = np.asarray(moocore.pareto_rank(points), dtype=np.int64)
    corner = points.max(0)
    volumes = np.zeros(len(points))
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        volumes[members] = moocore.hv_contributions(points[members], ref=corner)
    lower_rank = ranks[None, :] < ranks[:, None]
    same_rank = ranks[None, :] == ranks[:, None]
    larger_volume = volumes[None, :] > volumes[:, None]
    before = lower_rank | (same_rank & larger_volume)
    counts: npt.NDArray[np.int64] = before.sum(1)
    return counts


def trend(octaves: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> float:
    """Loss per octave of FLOPs: the median slope of all pairs (Theil and Sen), at most 0.

    It is 0 where all costs are equal.
    """
    first, second = np.triu_indices(len(octaves), 1)
    run = octaves[second] - octaves[first]
    rise = losses[second] - losses[first]
    apart = run != 0.0
    if not apart.any():
        return 0.0
    slopes = rise[apart] / run[apart]
    return min(0.0, float(np.median(slopes)))


def _at_rung(standing: Standing, peers: Sequence[Standing]) -> list[Standing]:
    """Standings of other trials at the same rung."""
    rung = standing.rung
    return [peer for peer in peers if peer.rung == rung and peer.trial != standing.trial]


def _lost(standing: Standing, max_drop: float) -> str | None:
    if standing.quality_drop <= max_drop:
        return None
    return f"lost {standing.quality_drop:.3f} of quality, more than {max_drop:g}"


def _check(keep: float, max_drop: float) -> None:
    if not 0.0 < keep <= 1.0:
        raise ConfigError(f"stopping.keep must be a share in (0, 1]; got {keep}")
    if max_drop <= 0.0:
        raise ConfigError(f"stopping.max_drop must be above 0; got {max_drop}")
