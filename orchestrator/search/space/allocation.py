"""How a target of FLOPs or of latency is shared out among the groups.

It is shared by equal ratios, by equal loss, or anything between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.saving import CostOfMany
from lightning_modules.pruning.structure import Counts, Structure
from lightning_modules.pruning.thresholds import choose, rounded

Ratios = npt.NDArray[np.float64]
"""Pruning ratio per group: the fraction of its dense units removed; shape (n_groups,)."""
Macs = Callable[[Counts], int]
"""What a target is a ratio of: MACs, or another whole number that falls with the counts."""
PROFILED_RATIO = 0.5
"""Share of a group's units that are removed to see what the group costs: the middle."""
PROFILE_POWER = 2.0
"""The power of the pruning ratio with which a group's loss grows.

A divergence is least, 0, where nothing is removed, so that at first it grows with the square.
"""


@dataclass(frozen=True)
class TargetCost:
    """What targets are ratios of, and their `name` among a plan's parameters.

    `of` is the cost of a plan. `parts` is what units save in many plans at once, up to a curve over
    the whole.
    """

    name: str
    of: Macs
    parts: CostOfMany


@dataclass(frozen=True)
class Sensitivity:
    """How much each group alone loses as its units go.

    `loss[g]` is the divergence (KL, nats) from the dense outputs with `PROFILED_RATIO` of group g
    removed; shape (n_groups,).
    """

    loss: npt.NDArray[np.float64]

    def ratios_at(self, level: float, most: float = 0.98) -> Ratios:
        """The ratio at which each group reaches loss `level`, at most `most`.

        A power law loss = a x ratio^2 goes through the measured point of each group.
        """
        # in logarithms: flat groups have levels far beyond what a float's exponential holds
        measured = np.log(np.maximum(self.loss, 1e-9))
        scale = measured - PROFILE_POWER * np.log(PROFILED_RATIO)
        logs = (np.log(level) - scale) / PROFILE_POWER
        ratios: Ratios = np.exp(np.minimum(logs, np.log(most)))
        return ratios


def counts_of(sizes: Counts, ratios: Ratios, least: int = 1) -> Counts:
    """Whole units kept, at least `least` per group."""
    kept = np.rint(sizes * (1.0 - ratios))
    return np.clip(kept, least, sizes).astype(np.int64)


def equal_loss(sizes: Counts, macs: Macs, target: int, sensitivity: Sensitivity) -> Ratios:
    """Ratios at which every group alone would cost the same divergence, within `target` MACs."""

    def counts(level: float) -> Counts:
        return counts_of(sizes, sensitivity.ratios_at(np.exp(level)))

    level = lowest_level(counts, macs, target, -40.0, 40.0)
    return 1.0 - counts(level) / sizes


def scaled(sizes: Counts, macs: Macs, target: int, share: Ratios, least: int = 1) -> Counts:
    """Counts that are the same multiple of every group's `share`, within `target` MACs.

    Shares are fractions of a group's units; no group keeps more than all of them.
    """

    def counts(level: float) -> Counts:
        kept = np.minimum(1.0, share * np.exp(-level))
        return counts_of(sizes, 1.0 - kept, least)

    return counts(lowest_level(counts, macs, target, -8.0, 8.0))


def between_allocations(sizes: Counts, macs: Macs, target: int, allocations: Counts) -> Counts:
    """Counts on the way from one of the `allocations` to the next, within `target` MACs.

    Each allocation lies within the one before; shape (n_allocations, n_groups). The way begins at
    `sizes`, and behind the last allocation all groups shrink alike. Counts at a smaller target lie
    within those at a larger one.
    """
    points = np.vstack([sizes, allocations, np.zeros_like(sizes)])
    last = len(points) - 1

    def counts(level: float) -> Counts:
        before = min(int(level), last - 1)
        part = level - before
        kept = (1.0 - part) * points[before] + part * points[before + 1]
        return counts_of(sizes, 1.0 - kept / sizes)

    return counts(lowest_level(counts, macs, target, 0.0, float(last)))


def evenly(structure: Structure, flops_ratio: float, multiple: int = 1) -> Counts:
    """Units kept at equal ratios of all groups within `flops_ratio`; whole blocks stay.

    Widths are rounded up to a `multiple`.
    """
    cost = Cost(structure)
    sizes = structure.sizes

    def macs(kept: Counts) -> int:
        return cost.macs(rounded(structure, kept, multiple))

    even = np.ones(len(structure.groups))
    target = int(flops_ratio * cost.macs(sizes))
    return rounded(structure, scaled(sizes, macs, target, even), multiple)


def cut_anyhow(model: nn.Module, structure: Structure, kept: Counts) -> nn.Module:
    """The model with the first units of each group kept: for timing, not for use."""
    keep = choose(structure, np.zeros(structure.n_units), structure.full(), kept)
    return remove(model, structure, keep)


@dataclass(frozen=True)
class Shares:
    """How a target is shared out among the groups.

    `blend` goes from uniform (0) to equal loss (1), for which there must be a `sensitivity`.
    `offsets` are octaves: group g keeps 2^offset as much as its share; shape (n_groups,). `ranked`
    gives other counts at a target that stand in for uniform ones: those of a ranking over several
    groups, or of a preview.
    """

    blend: float = 0.0
    sensitivity: Sensitivity | None = None
    offsets: Ratios | None = None
    ranked: Callable[[int], Counts] | None = None


def allocate(sizes: Counts, macs: Macs, target: int, shares: Shares) -> Counts:
    """Units kept per group, the most that stay within `target` MACs; shapes (n_groups,)."""
    if shares.ranked is None:
        even = scaled(sizes, macs, target, np.ones(len(sizes)))
    else:
        even = shares.ranked(target)
    moved = shares.offsets is not None and bool(shares.offsets.any())
    if shares.blend == 0.0 and not moved:
        return even
    ratios = 1.0 - even / sizes
    if shares.blend > 0.0 and shares.sensitivity is not None:
        by_loss = equal_loss(sizes, macs, target, shares.sensitivity)
        ratios = (1.0 - shares.blend) * ratios + shares.blend * by_loss
    factor = 1.0 if shares.offsets is None else np.exp2(shares.offsets)
    return scaled(sizes, macs, target, (1.0 - ratios) * factor)


def lowest_level(
    counts: Callable[[float], Counts], macs: Macs, target: int, low: float, high: float
) -> float:
    """The lowest level within `target` MACs, by bisection; counts fall as the level rises.

    It is `high` where no level is within the target.
    """
    for _ in range(50):
        middle = 0.5 * (low + high)
        if macs(counts(middle)) <= target:
            high = middle
        else:
            low = middle
    return high
