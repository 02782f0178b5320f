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
"""Trials below which a correlation is left out."""
Values = npt.NDArray[np.float64]


def rung_rows(trials: Sequence[FrozenTrial], goals: Goals, axis: str = "flops") -> list[RungRow]:
    """A row per rung that some completed trial went beyond; `axis` is the cost that is taken
    out.
    """
    from orchestrator.search.studies.trial import (
        MEASURED,
        RUNGS,
        TrialState,
    )  # to show rows takes no Optuna

    quality, sign = goals.quality, goals.sign
    shown: dict[int, list[tuple[float, float, float, float]]] = {}
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            continue
        measured, rungs = trial.user_attrs[MEASURED], trial.user_attrs.get(RUNGS, ())
        end, cost = sign * measured["metrics"][quality], math.log(measured["ratios"][axis])
        for rung, _, metrics in rungs[:-1]:
            shown.setdefault(rung, []).append(
                (-goals.loss(metrics), sign * metrics[quality], end, cost)
            )
    return [_row(rung, np.array(shown[rung])) for rung in sorted(shown)]


def _row(rung: int, found: Values) -> RungRow:
    if len(found) < LEAST:
        return RungRow(rung, len(found), None, None, None, None)
    loss, quality, end, cost = found.T
    return RungRow(
        rung,
        len(found),
        rank_correlation(loss, end),
        rank_correlation(loss, end, cost),
        rank_correlation(quality, end),
        rank_correlation(quality, end, cost),
    )


def rank_correlation(one: Values, other: Values, given: Values | None = None) -> float | None:
    """Spearman's, or with `given` the partial one; None where a side does not vary (any more).
    Shapes (n,).
    """
    from scipy.stats import rankdata

    mine, others = _centred(rankdata(one)), _centred(rankdata(other))
    if given is not None:
        fixed = _centred(rankdata(given))
        mine, others = _without(mine, fixed), _without(others, fixed)
    size = float(np.linalg.norm(mine) * np.linalg.norm(others))
    return None if size < 1e-9 * len(mine) else float(np.clip(mine @ others / size, -1.0, 1.0))


def _centred(ranks: Values) -> Values:
    found: Values = ranks - ranks.mean()
    return found


def _without(ranks: Values, fixed: Values) -> Values:
    length = float(fixed @ fixed)
    return ranks if length == 0.0 else ranks - (ranks @ fixed / length) * fixed


def rung_columns(rows: Sequence[RungRow]) -> dict[str, float]:
    """The correlations there are, under names for tracking: `rung_1_loss_rank`, ..."""
    found = {}
    for row in rows:
        for name in ("loss", "loss_at_cost", "quality", "quality_at_cost"):
            if (value := getattr(row, name)) is not None:
                found[f"rung_{row.rung}_{name}_rank"] = value
    return found


def in_words(rows: Sequence[RungRow]) -> str:
    """One line: how the losses of each rung rank the trials, against their quality in the end."""
    told = [row for row in rows if row.loss is not None]
    if not told:
        return f"no rung has {LEAST} trials that completed after it: no rank correlation"
    parts = []
    for row in told:
        at_cost = "" if row.loss_at_cost is None else f" ({row.loss_at_cost:.2f} at equal FLOPs)"
        parts.append(f"rung {row.rung} {row.loss:.2f}{at_cost}, {row.trials} trials")
    return "rank correlation of the loss with the quality in the end: " + "; ".join(parts)
