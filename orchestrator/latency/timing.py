"""Passes of several models in turn, timed, so that a busy machine favours none of them.

A long pass is interrupted by other programs and a short one is not, so that turns alone would
favour small models. The time in which a pass waits for a core is therefore taken out, where the
system tells it (Linux).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pass = Callable[[], object]
"""A forward pass; it returns when its outputs are there."""

TURN_SECONDS = 1.0
"""Time that the turns of one measurement may take together, warm-up left out."""
MOST_TURNS = 100
LEAST_TURNS = 9
"""Fewer turns than these say nothing of a spread."""
WARM_UP = 3
"""Untimed turns at first: allocators and kernels settle."""
COLD_WARM_UP = 2
COLD_PASSES = 8
"""Untimed and timed passes of a single layer."""
MILLI = 1000.0
NANO = 1e-9
LEAST_COUNTED = 0.05
"""Share of a pass that counts in any case: clocks of waiting and of passing are not the same."""
_THREADS = Path("/proc/self/task")


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Spread:
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(lower), float(upper))

    @property
    def relative(self) -> float:
        """The distance of the quartiles as a share of the median."""
        return (self.upper - self.lower) / self.median

    def times(self, factor: float) -> Spread:
        return Spread(factor * self.median, factor * self.lower, factor * self.upper)


def timed_in_turn(runs: Sequence[Pass], seconds: float = TURN_SECONDS) -> npt.NDArray[np.float64]:
    """Milliseconds of a pass, shape (n_turns, n_runs).

    A turn passes through every run, each second turn in reverse. Before each timed pass goes an
    untimed one of the same run, which fills the caches as a model does that runs alone. There are
    as many turns as take `seconds` altogether, within LEAST_TURNS and MOST_TURNS.
    """
    for _ in range(WARM_UP):
        begin = time.perf_counter()
        _turn(runs)
        duration = time.perf_counter() - begin
    turns = int(np.clip(seconds / max(duration, 1e-9), LEAST_TURNS, MOST_TURNS))
    rows = []
    for turn in range(turns):
        backwards = turn % 2 == 1
        ordered = list(runs)[::-1] if backwards else list(runs)
        row = _turn(ordered)
        rows.append(row[::-1] if backwards else row)
    return MILLI * np.array(rows)


def _turn(runs: Sequence[Pass]) -> list[float]:
    """Seconds of one timed pass of each run."""
    seconds = []
    for run in runs:
        run()
        seconds.append(_seconds(run))
    return seconds


def _seconds(run: Pass) -> float:
    """Seconds of one pass, without its wait for a core."""
    before = waited()
    begin = time.perf_counter()
    run()
    passed = time.perf_counter() - begin
    return max(passed - longest_wait(before, waited()), LEAST_COUNTED * passed)


def cold_ms(run: Pass, evict: Pass) -> float:
    """Milliseconds of a pass that finds the caches as `evict` leaves them.

    It is the lower quartile: other work on the machine only makes a pass slower.
    """
    seconds = []
    for _ in range(COLD_WARM_UP + COLD_PASSES):
        evict()
        seconds.append(_seconds(run))
    return MILLI * float(np.quantile(seconds[COLD_WARM_UP:], 0.25))


def waited() -> dict[str, float]:
    """Seconds that each thread of this process has waited for a core; empty where nobody tells."""
    seconds = {}
    try:
        for thread in _THREADS.iterdir():
            seconds[thread.name] = NANO * float((thread / "schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        # not Linux, or a thread that ended meanwhile
        return {}
    return seconds


def longest_wait(before: dict[str, float], after: dict[str, float]) -> float:
    """Seconds that the thread waited that waited longest; the others had to wait for it."""
    waits = [seconds - before[thread] for thread, seconds in after.items() if thread in before]
    return max(waits, default=0.0)


def ratios_to_first(milliseconds: npt.NDArray[np.float64]) -> list[Spread]:
    """Each later run against the first one of the same turn; `milliseconds` as of `timed_in_turn`.

    What slows the machine down for a while slows both of a pair.
    """
    first = milliseconds[:, 0]
    return [Spread.of(column / first) for column in milliseconds.T[1:]]
