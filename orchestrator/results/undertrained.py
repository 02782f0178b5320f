"""Signs that the dense model was trained too short, which makes every pruned model look good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.results.quantities import mean_and_spread
from orchestrator.results.rows import ConfirmedRow, Rows

LEAST_EPOCHS = 4
_REMEDY = "it may be trained too short (phases.train.epochs)"


def better_than_dense(rows: Rows, sign: float, tolerance: float) -> ConfirmedRow | None:
    """The best of the front's models, if it is better than the dense one on test data.

    That is: by more than the tolerance, and by more than one standard deviation of the difference.
    `sign` is 1 where a large quality is good, else -1.
    """
    dense = rows.dense
    if dense is None or not rows.front:
        return None
    best = max(rows.front, key=lambda row: sign * row.test_mean)
    ahead = sign * (best.test_mean - dense.test_mean)
    if ahead > max(tolerance, math.hypot(best.test_std, dense.test_std)):
        return best
    return None


def late_gain(curve: Sequence[float], sign: float) -> float | None:
    """By how much the best of the last quarter of a training is ahead of the best before.

    None for fewer than four epochs, and for values that are no numbers.
    """
    if len(curve) < LEAST_EPOCHS or not all(math.isfinite(value) for value in curve):
        return None
    late = -(-len(curve) // 4)
    upright = [sign * value for value in curve]
    return max(upright[-late:]) - max(upright[:-late])


def undertraining(rows: Rows, quality: str, sign: float, summary: Mapping[str, Any]) -> str:
    """Signs that the dense model was trained too short, without a full stop; "" for none.

    `summary` is summary.json: its `dense_late_gain` is that of `late_gain`.
    """
    tolerance = summary.get("smallest", {}).get("tolerance")
    if tolerance is None:
        return ""
    signs = []
    gain = summary.get("dense_late_gain")
    if gain is not None and gain > tolerance:
        signs.append(
            f"the dense model was still improving: its {quality} gained {gain:.4f} in the last "
            "quarter of its training"
        )
    best = better_than_dense(rows, sign, tolerance)
    if best is not None and rows.dense is not None:
        signs.append(_better_in_words(best, rows.dense, quality))
    return f"{'; '.join(signs)}: {_REMEDY}" if signs else ""


def _better_in_words(best: ConfirmedRow, dense_row: ConfirmedRow, quality: str) -> str:
    ours = mean_and_spread(best.test_mean, best.test_std)
    dense = mean_and_spread(dense_row.test_mean, dense_row.test_std)
    return (
        f"{best.words} is better than the dense model ({quality} {ours} against {dense} on test "
        "data)"
    )
