"""Signs that the dense model was trained too short, which makes every pruned model look good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orchestrator.results.quantities import mean_and_spread
from orchestrator.results.rows import ConfirmedRow, Rows

REMEDY = "it may be trained too short (phases.train.epochs)"


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


def in_words(rows: Rows, quality: str, sign: float, summary: Mapping[str, Any]) -> str:
    """A sentence without its full stop about a dense model that is behind; "" for none."""
    tolerance = summary.get("smallest", {}).get("tolerance")
    best = None if tolerance is None else better_than_dense(rows, sign, tolerance)
    if best is None or rows.dense is None:
        return ""
    ours = mean_and_spread(best.test_mean, best.test_std)
    dense = mean_and_spread(rows.dense.test_mean, rows.dense.test_std)
    return (
        f"{best.words} is better than the dense model ({quality} {ours} against {dense} on test "
        f"data): {REMEDY}"
    )
