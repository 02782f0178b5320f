"""Schedules: pure functions from progress in [0, 1] to the fraction of the final pruning reached.

All end at 1. Those in `RETURNING` also fall on the way: they need units that can come back
(`method.soft=true`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""Maps progress to the fraction of the final pruning."""


def one_shot(progress: float) -> float:
    """Prunes everything at the first step."""
    return 1.0 if progress > 0.0 else 0.0


def linear(progress: float) -> float:
    """Prunes in equal steps."""
    return progress


def cubic(progress: float) -> float:
    """Fast at first, slow at the end (Zhu & Gupta 2017, eq. 1)."""
    return 1.0 - (1.0 - progress) ** 3


def exponential(progress: float) -> float:
    """1 - 0.01^progress, stretched to end at 1. It is faster at first than cubic."""
    return (1.0 - math.pow(0.01, progress)) / 0.99


def cosine(progress: float) -> float:
    """Slow at both ends."""
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def cyclic(progress: float, cycles: int = 3) -> float:
    """Cubic in each of `cycles` cycles, so that units return (Srinivas et al. 2022).

    The first cycle begins at 0, the later ones a third of the way up. Units return only if there
    are more steps than cycles.
    """
    if progress >= 1.0:
        return 1.0
    cycle, within = divmod(progress * cycles, 1.0)
    floor = 0.0 if cycle == 0 else 1.0 / 3.0
    return floor + (1.0 - floor) * cubic(within)


def recovering(progress: float, over: float = 0.2, turn: float = 0.5) -> float:
    """Gradual recovery: cubic to `1 + over` at progress `turn`, then linear back to 1."""
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
"""The schedules by the names that plans give them."""
RETURNING = frozenset({"cyclic", "recovering"})
"""The schedules under which pruned units come back."""
