"""Which model of a finished study to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_modules.errors import ConfigError
from orchestrator.costs import COSTS, ratio_name
from orchestrator.results.rows import ConfirmedRow

SLACK = 1e-9
"""By so much a difference of two decimal numbers may be off."""


@dataclass(frozen=True)
class Front:
    """The confirmed models of a study, and its dense model.

    `sign` is 1 where a large quality is good, else -1; `quality` is its name.
    """

    rows: Sequence[ConfirmedRow]
    dense: ConfirmedRow
    quality: str
    sign: float

    def sure(self, row: ConfirmedRow) -> float:
        """The quality that a model has at least: mean less spread on test data, large is good."""
        return self.sign * row.test_mean - row.test_std

    def drop(self, row: ConfirmedRow) -> float:
        """How far a model's sure quality is below the dense model's mean."""
        return self.sign * self.dense.test_mean - self.sure(row)


def max_quality(front: Front, **limits: float | None) -> ConfirmedRow:
    """The best model within limits on costs: `max_flops_ratio=0.5`, `max_latency_ms=3`, ...

    Errors: ConfigError for a limit on no cost, or one that no model keeps.
    """
    within = list(front.rows)
    for name, most in limits.items():
        if most is not None:
            _require_number(name, most)
            within = _within(within, name.removeprefix("max_"), most)
    return max(within, key=front.sure)


def smallest(front: Front, max_drop: float) -> ConfirmedRow:
    """The model of least cost whose quality is at most `max_drop` below the dense model's.

    Errors: ConfigError where there is none.
    """
    _require_number("max_drop", max_drop)
    near = [row for row in front.rows if front.drop(row) <= max_drop + SLACK]
    if not near:
        best = min(front.rows, key=front.drop)
        raise ConfigError(
            f"select.max_drop={max_drop:g} must be what a model of the front keeps; the nearest is "
            f"{best.words}, whose {front.quality} is {front.drop(best):.4g} below the dense "
            "model's (mean less spread on test data): give it that much, or select=knee"
        )
    return min(near, key=lambda row: row.cost)


def knee(front: Front) -> ConfirmedRow:
    """The model where the front bends most: farthest above the line between its ends.

    Costs count in octaves, each axis from 0 to 1. With two models or fewer it is the best one.
    """
    rows = sorted(front.rows, key=lambda row: row.cost)
    costs = [math.log(max(row.cost, 1e-12)) for row in rows]
    qualities = [front.sure(row) for row in rows]
    wide = costs[-1] - costs[0]
    high = max(qualities) - qualities[0]
    if len(rows) < 3 or wide <= 0.0 or high <= 0.0:
        return max(rows, key=front.sure)

    def above(index: int) -> float:
        return (qualities[index] - qualities[0]) / high - (costs[index] - costs[0]) / wide

    return rows[max(range(len(rows)), key=above)]


def _require_number(name: str, value: object) -> None:
    """Errors: ConfigError for a limit that is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"select.{name} must be a number; got '{value}'")


def _within(rows: Sequence[ConfirmedRow], column: str, most: float) -> list[ConfirmedRow]:
    """Rows with at most so much in a column of costs."""
    known = [name for cost in COSTS for name in (cost, ratio_name(cost))]
    if column not in known:
        raise ConfigError(f"select.max_{column} must limit a cost; they are {', '.join(known)}")
    values = [(_column_of(row, column), row) for row in rows]
    within = [row for value, row in values if value is not None and value <= most]
    if within:
        return within
    measured = [(value, row) for value, row in values if value is not None]
    if not measured:
        raise ConfigError(f"select.max_{column} needs models with that cost; the study has none")
    value, nearest = min(measured, key=lambda pair: pair[0])
    raise ConfigError(
        f"select.max_{column}={most:g} must be what a model of the front keeps; the nearest is "
        f"{nearest.words} with {value:.4g}: give it that much"
    )


def _column_of(row: ConfirmedRow, column: str) -> float | None:
    if column in COSTS:
        return row.costs.get(column)
    return row.ratios.get(column.removesuffix("_ratio"))
