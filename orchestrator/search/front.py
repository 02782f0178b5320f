"""The Pareto front: results that no other result dominates.

Dominance and volume are computed by moocore.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""Shape (n, objectives).

The quality comes first, and larger is better, whatever the metric; of all others, smaller is
better.
"""
LEAST_RATIO = 1 / 32
"""Ratio to the dense FLOPs at which the area along their log axis is clipped.

It holds where no bound says otherwise.
"""


def non_dominated(points: Points, tolerance: float = 0.0) -> npt.NDArray[np.bool_]:
    """True for points that no other one dominates; shape (n,).

    A point dominates if it is no worse everywhere and better somewhere. With a `tolerance` a rival
    must be better in quality by more than that, so that models which the validation data cannot
    tell apart all stay. Of equal points the first stays.
    """
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    if tolerance == 0.0:
        signed = points * _signs(points.shape[1])
        kept: npt.NDArray[np.bool_] = moocore.is_nondominated(signed, keep_weakly=False)
        return kept
    quality = points[:, 0]
    costs = points[:, 1:]
    cheaper = (costs[:, None, :] <= costs[None, :, :]).all(2)
    clearly_better = quality[:, None] > quality[None, :] + tolerance
    equal = (points[:, None, :] == points[None, :, :]).all(2)
    earlier = np.tri(len(points), k=-1, dtype=np.bool_).T
    dominates = cheaper & clearly_better
    beaten: npt.NDArray[np.bool_] = (dominates | (equal & earlier)).any(0)
    return ~beaten


def _signs(n_objectives: int) -> npt.NDArray[np.float64]:
    """Factors that turn points into losses: all to be small."""
    signs = np.ones(n_objectives)
    signs[0] = -1.0
    return signs


def hypervolume(
    quality: Sequence[float], flops_ratio: Sequence[float], reference: float, least: float
) -> float:
    """Area between the front and the reference quality over log FLOPs.

    The axis is log(ratio) / log(least), from the dense cost down to `least`, clipped to [0, 1]. So
    a model at `least` of the dense FLOPs with quality `reference + 1` would fill one unit.
    """
    points = []
    for value, ratio in zip(quality, flops_ratio, strict=True):
        if value > reference:
            position = math.log(ratio) / math.log(least)
            points.append((-value, 1.0 - min(1.0, max(0.0, position))))
    if not points:
        return 0.0
    corner = np.array([-reference, 1.0])
    return float(moocore.hypervolume(np.array(points), ref=corner))


def volume(points: Points, reference: npt.NDArray[np.float64]) -> float:
    """Volume between the points and the `reference`, both as in `Points`.

    A point that is not better than the reference everywhere adds nothing. The volume is normalised
    where costs are ratios to the dense model's: a model of quality `reference + 1` at no cost would
    fill one unit, times one for each unit of a further metric.
    """
    signs = _signs(len(reference))
    losses = points * signs
    corner = reference * signs
    inside = losses[(losses < corner).all(1)]
    if not len(inside):
        return 0.0
    return float(moocore.hypervolume(inside, ref=corner))


def spread_out(
    costs: Sequence[float], most: int, losses: Sequence[float] | None = None
) -> list[int]:
    """Indices of at most `most` values, spread over the log of the cost, cheapest first.

    The axis is cut into `most` stretches of equal length, and each non-empty one gives its lowest
    loss. Without losses it gives the value nearest to its middle, and the two ends of the axis
    count as middles. Where stretches are empty, the next best values follow instead.
    """

    def by_cost(index: int) -> float:
        return costs[index]

    if len(costs) <= most:
        return sorted(range(len(costs)), key=by_cost)
    logs = np.log(np.asarray(costs, dtype=float))
    position = (logs - logs.min()) / max(float(np.ptp(logs)), 1e-12)
    stretch = np.minimum((position * most).astype(int), most - 1).tolist()
    if losses is None:
        middle = np.round(position * (most - 1)) / max(1, most - 1)
        rank = np.abs(position - middle)
    else:
        rank = np.asarray(losses)
    best: dict[int, int] = {}
    rest = []
    for index in np.argsort(rank, kind="stable").tolist():
        if stretch[index] in best:
            rest.append(index)
        else:
            best[stretch[index]] = index
    chosen = [*best.values(), *rest[: most - len(best)]]
    return sorted(chosen, key=by_cost)
