"""How much a study may take: time, trials, or epochs of finetuning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Budget:
    """`amount` of `unit`; `text` is how it was written."""

    amount: float
    unit: Literal["seconds", "trials", "epochs"]
    text: str

    def covers(self, other: Budget) -> bool:
        """Whether it is at least as much of the same."""
        return self.unit == other.unit and self.amount >= other.amount

    @property
    def paced(self) -> bool:
        """Whether the finetuning of each trial follows from the budget."""
        return self.unit != "trials"


def parse_time(value: Any) -> Budget:
    """Errors: ValueError for anything but a time."""
    found = parse(value)
    if found.unit != "seconds":
        raise ValueError(f"must be a time: 90s, 20min, 1.5h or 2d; got {value!r}")
    return found


def parse(value: Any) -> Budget:
    """Errors: ValueError for anything but a number above 0 with one of its units."""
    if isinstance(value, Budget):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|trials|epochs)\s*", str(value))
    number = 0.0 if found is None else float(found[1])
    if found is None or not 0.0 < number < math.inf or (found[2] == "trials" and number % 1):
        raise ValueError(f"must be a number and a unit: 90s, 20min, 1.5h, 2d, 40trials or 30epochs; got {value!r}")
    unit, text = found[2], f"{found[1]}{found[2]}"
    if unit in SECONDS:
        return Budget(number * SECONDS[unit], "seconds", text)
    return Budget(number, "trials" if unit == "trials" else "epochs", text)
