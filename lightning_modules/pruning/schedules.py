"""Schedules: pure functions from progress in [0, 1] to the fraction of the final pruning reached."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def one_shot(progress: float) -> float:
    """Everything at the first step."""
    return 1.0 if progress > 0.0 else 0.0


def linear(progress: float) -> float:
    """Equal steps."""
    return progress


def cubic(progress: float) -> float:
    """Fast at first, slow at the end (Zhu & Gupta 2017, eq. 1)."""
    return 1.0 - (1.0 - progress) ** 3


def cosine(progress: float) -> float:
    """Slow at both ends."""
    return 0.5 * (1.0 - math.cos(math.pi * progress))


SCHEDULES: dict[str, Schedule] = {"one_shot": one_shot, "linear": linear, "cubic": cubic, "cosine": cosine}
