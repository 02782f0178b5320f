"""The front: which results no other one makes needless. Dominance and volume by moocore."""

from __future__ import annotations

import math
from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""Shape (n, objectives): quality first (larger is better, whatever the metric), then all others,
smaller is better.
"""


def non_dominated(points: Points, tolerance: float = 0.0) -> npt.NDArray[np.bool_]:
    """True for points that no other one dominates: no worse everywhere and better somewhere; shape
    (n,).

    With a `tolerance` a rival must be better in quality by more than that, so that models which the
    validation data cannot tell apart all stay. Of equal points the first stays.
    """
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    if tolerance == 0.0:
        signed = points * np.array([-1.0] + [1.0] * (points.shape[1] - 1))
        kept: npt.NDArray[np.bool_] = moocore.is_nondominated(signed, keep_weakly=False)
        return kept
    quality, costs = points[:, 0], points[:, 1:]
    cheaper = (costs[:, None, :] <= costs[None, :, :]).all(2)
    clearly_better = quality[:, None] > quality[None, :] + tolerance
    same = (points[:, None, :] == points[None, :, :]).all(2) & np.tri(
        len(points), k=-1, dtype=np.bool_
    ).T
    beaten: npt.NDArray[np.bool_] = ((cheaper & clearly_better) | same).any(0)
    return ~beaten


def hypervolume(
    quality: Sequence[float], flops_ratio: Sequence[float], reference: float, least: float
) -> float:
    """Area between the front and the reference quality over log FLOPs, from the dense cost down to
    `least`; in [0, 1].

    The axis is log(ratio) / log(least), clipped to [0, 1], so that a model at `least` of the dense
    FLOPs with quality `reference + 1` would fill one unit.
    """
    points = [
        (-q, 1.0 - min(1.0, max(0.0, math.log(r) / math.log(least))))
        for q, r in zip(quality, flops_ratio, strict=True)
        if q > reference
    ]
    return (
        float(moocore.hypervolume(np.array(points), ref=np.array([-reference, 1.0])))
        if points
        else 0.0
    )


def volume(points: Points, reference: npt.NDArray[np.float64]) -> float:
    """Volume between the points and the `reference`, both as in `Points`; what is not better
    everywhere adds nothing.

    Normalised where costs are ratios to the dense model's: a model of quality `reference + 1` at no
    cost would fill one unit per further metric's unit.
    """
    signs = np.array([-1.0] + [1.0] * (len(reference) - 1))
    losses, corner = points * signs, reference * signs
    inside = losses[(losses < corner).all(1)]
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0


def spread_out(
    costs: Sequence[float], most: int, losses: Sequence[float] | None = None
) -> list[int]:
    """Indices of at most `most` values, spread over the log of the cost, cheapest first.

    The axis is cut into `most` stretches of equal length; each non-empty one gives its lowest loss
    (without losses the value nearest to its middle, and the two ends of all), and empty ones leave
    their place to the next best values.
    """
    if len(costs) <= most:
        return sorted(range(len(costs)), key=lambda i: costs[i])
    logs = np.log(np.asarray(costs, dtype=float))
    place = (logs - logs.min()) / max(float(np.ptp(logs)), 1e-12)
    cut = np.minimum((place * most).astype(int), most - 1).tolist()
    rank = (
        np.abs(place - np.round(place * (most - 1)) / max(1, most - 1))
        if losses is None
        else np.asarray(losses)
    )
    by_rank = np.argsort(rank, kind="stable").tolist()
    best = {
        cut[i]: i for i in reversed(by_rank)
    }  # of a stretch the last written, the lowest rank, stays
    rest = [i for i in by_rank if i not in best.values()]
    return sorted([*best.values(), *rest[: most - len(best)]], key=lambda i: costs[i])
