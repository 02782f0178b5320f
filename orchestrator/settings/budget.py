"""How much a study may take: time, or epochs of finetuning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

SECONDS_PER_UNIT = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds by the name of a time's unit."""


@dataclass(frozen=True)
class Budget:
    """`amount` of `measure`; `text` is how it was written."""

    amount: float
    measure: Literal["seconds", "epochs"]
    text: str

    def covers(self, other: Budget) -> bool:
        """Whether this budget is at least as much of the same measure."""
        return self.measure == other.measure and self.amount >= other.amount


def parse_time(value: Any) -> Budget:
    """Errors: ValueError for anything but a time."""
    budget = parse_budget(value)
    if budget.measure != "seconds":
        raise ValueError(f"must be a time: 90s, 20min, 1.5h or 2d; got {value!r}")
    return budget


def parse_budget(value: Any) -> Budget:
    """Errors: ValueError for anything but a number above 0 with one of its units."""
    if isinstance(value, Budget):
        return value
    if re.fullmatch(r"\s*\d+\s*trials\s*", str(value)):
        raise ValueError(
            f"is a time or epochs; for a number of trials take study.n_trials; got {value!r}"
        )
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|epochs)\s*", str(value))
    number = 0.0 if match is None else float(match[1])
    if match is None or not 0.0 < number < math.inf:
        raise ValueError(
            f"must be a number and a unit: 90s, 20min, 1.5h, 2d or 30epochs; got {value!r}"
        )
    unit = match[2]
    text = f"{match[1]}{match[2]}"
    if unit == "epochs":
        return Budget(number, "epochs", text)
    return Budget(number * SECONDS_PER_UNIT[unit], "seconds", text)
