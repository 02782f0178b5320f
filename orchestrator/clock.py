"""Where the wall-clock time of a run went, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

COMPUTE_PHASES = (
    "dense training",
    "profile",
    "scores",
    "compensation",
    "allocation",
    "recalibration",
    "finetune",
    "evaluation",
    "workers",
)
"""Phases in which models work on data, which any search would have to pay for.

All other time is orchestration. Workers measure their own.
"""


class PhaseClock:
    """Seconds per phase, each second counted once: an inner phase is taken out of the outer one.

    It belongs to one thread. `now` gives seconds on any monotonic scale.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._now = now
        self._open: list[str] = []
        self._charged_until = 0.0

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Charges the time inside the block to `name`, also when the block raises."""
        self._charge()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = self._now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._charged_until
        self._charged_until = now


def orchestration_share(
    seconds: Mapping[str, float], total: float, compute: Sequence[str] = COMPUTE_PHASES
) -> float:
    """Fraction of `total` seconds, in [0, 1], that went into none of the `compute` phases.

    Errors: ValueError when `total` is not above zero.
    """
    if total <= 0:
        raise ValueError(f"total must be above 0 seconds; got {total}; time the whole run")
    spent = [seconds.get(name, 0.0) for name in compute]
    share = 1.0 - sum(spent) / total
    return min(1.0, max(0.0, share))
