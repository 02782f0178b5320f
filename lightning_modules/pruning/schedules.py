"""Schedules: pure functions from progress in [0, 1] to the fraction of the final pruning reached.

All end at 1. Those in `RETURNING` fall again on the way: they need units that can come back (`method.soft=true`).
"""

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


def exponential(progress: float) -> float:
    """1 - 0.01^progress, stretched to end at 1: faster at first than cubic."""
    return (1.0 - math.pow(0.01, progress)) / 0.99


def cosine(progress: float) -> float:
    """Slow at both ends."""
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def cyclic(progress: float, cycles: int = 3) -> float:
    """Cubic in each of `cycles`, the later ones from a third of the way up (Srinivas et al. 2022): units return.

    The first cycle begins at 0. It takes more steps than cycles for units to return.
    """
    if progress >= 1.0:
        return 1.0
    cycle, within = divmod(progress * cycles, 1.0)
    floor = 0.0 if cycle == 0 else 1.0 / 3.0
    return floor + (1.0 - floor) * cubic(within)


def recovering(progress: float, over: float = 0.2, turn: float = 0.5) -> float:
    """Cubic to `1 + over` of the final pruning at progress `turn`, then linearly back to 1: gradual recovery."""
    if progress <= turn:
        return (1.0 + over) * cubic(progress / turn)
    return 1.0 + over * (1.0 - progress) / (1.0 - turn)


SCHEDULES: dict[str, Schedule] = {
    "one_shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
    "cosine": cosine,
    "cyclic": cyclic,
    "recovering": recovering,
}
RETURNING = frozenset({"cyclic", "recovering"})
