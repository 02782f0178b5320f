"""Limits of the quality's axis, which pictures and pages share."""

from __future__ import annotations

import math
from dataclasses import replace

from orchestrator.results.rows import ConfirmedRow, Rows

_BELOW_SPAN = 0.35
"""Room below the confirmed models for trials and baselines, as a share of their span of quality."""


def upright(rows: Rows, sign: float) -> Rows:
    """Rows with qualities of which more is better.

    Trials that have no place in a picture are left out.
    """
    trials = []
    for row in rows.trials:
        if row.quality is not None and math.isfinite(row.quality) and row.cost_ratio:
            trials.append(replace(row, quality=sign * row.quality))

    def turned(row: ConfirmedRow) -> ConfirmedRow:
        return replace(row, test_mean=sign * row.test_mean)

    front = [turned(row) for row in rows.front]
    baselines = [turned(row) for row in rows.baselines]
    dense = None if rows.dense is None else turned(rows.dense)
    return Rows(trials, front, baselines, dense)


def quality_limits(rows: Rows) -> tuple[float, float]:
    """Limits of the axis for upright rows; they follow the confirmed models.

    One trial at chance level must not flatten the rest.
    """
    confirmed = list(rows.front)
    if rows.dense is not None:
        confirmed.append(rows.dense)
    others = [row.test_mean for row in rows.baselines]
    for row in rows.trials:
        if row.quality is not None:
            others.append(row.quality)
    low = []
    high = []
    for model in confirmed:
        low.append(model.test_mean - model.test_std)
        high.append(model.test_mean + model.test_std)
    if not confirmed:
        low = others or [0.0]
        high = others or [1.0]
    lowest = min(low)
    highest = max(high)
    span = max(highest - lowest, 0.02 * abs(highest), 1e-6)
    bottom = max(min([*low, *others]), lowest - _BELOW_SPAN * span)
    near = [value for value in others if value < highest + _BELOW_SPAN * span]
    top = max([highest, *near])
    return bottom - 0.07 * span, top + 0.10 * span
