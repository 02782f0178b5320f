"""How far early rungs foretell the end: rank correlations over the completed trials of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orchestrator.results.rows import RungRow

if TYPE_CHECKING:
    from orchestrator.search.goals import Goals
    from orchestrator.search.studies.trial import FrozenTrial

LEAST = 4
"""Number of trials below which a correlation is left out."""
Floats = npt.NDArray[np.float64]


def rung_rows(trials: Sequence[FrozenTrial], goals: Goals, axis: str = "flops") -> list[RungRow]:
    """A row per rung that some completed trial went beyond.

    `axis` is the cost whose effect the partial correlations take out.
    """
    # imported only here, because showing rows takes no Optuna
    from orchestrator.search.studies.trial import MEASURED, RUNGS, TrialState

    quality = goals.quality
    sign = goals.sign
    points: dict[int, list[tuple[float, float, float, float]]] = {}
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            continue
        measured = trial.user_attrs[MEASURED]
        rungs = trial.user_attrs.get(RUNGS, ())
        end = sign * measured["metrics"][quality]
        cost = math.log(measured["ratios"][axis])
        for rung, _, metrics in rungs[:-1]:
            point = (-goals.loss(metrics), sign * metrics[quality], end, cost)
            points.setdefault(rung, []).append(point)
    return [_row(rung, np.array(points[rung])) for rung in sorted(points)]


def _row(rung: int, points: Floats) -> RungRow:
    """The row of a rung.

    `points` has a column each for loss, quality, final quality and log cost.
    """
    if len(points) < LEAST:
        return RungRow(rung, len(points), None, None, None, None)
    loss, quality, end, cost = points.T
    return RungRow(
        rung,
        len(points),
        rank_correlation(loss, end),
        rank_correlation(loss, end, cost),
        rank_correlation(quality, end),
        rank_correlation(quality, end, cost),
    )


def rank_correlation(one: Floats, other: Floats, given: Floats | None = None) -> float | None:
    """Spearman's rank correlation, or with `given` the partial one; shapes (n,).

    None where a side does not vary, or does not vary any more without `given`.
    """
    from scipy.stats import rankdata

    first = _centred(rankdata(one))
    second = _centred(rankdata(other))
    if given is not None:
        fixed = _centred(rankdata(given))
        first = _without(first, fixed)
        second = _without(second, fixed)
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    if size < 1e-9 * len(first):
        return None
    correlation = first @ second / size
    return float(np.clip(correlation, -1.0, 1.0))


def _centred(ranks: Floats) -> Floats:
    centred: Floats = ranks - ranks.mean()
    return centred


def _without(ranks: Floats, fixed: Floats) -> Floats:
    """Floats without the part of them that is proportional to `fixed`."""
    length = float(fixed @ fixed)
    if length == 0.0:
        return ranks
    return ranks - (ranks @ fixed / length) * fixed


def in_words(rows: Sequence[RungRow]) -> str:
    """One line: how the losses of each rung rank the trials, against their final quality."""
    parts = []
    for row in rows:
        if row.loss is None:
            continue
        at_cost = "" if row.loss_at_cost is None else f" ({row.loss_at_cost:.2f} at equal FLOPs)"
        parts.append(f"rung {row.rung} {row.loss:.2f}{at_cost}, {row.trials} trials")
    if not parts:
        return f"no rung has {LEAST} trials that completed after it: no rank correlation"
    return "rank correlation of the loss with the quality in the end: " + "; ".join(parts)
