"""What a person sees during a run: a live display on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from orchestrator.clock import PhaseClock
from orchestrator.display import Goal, front_lines, study_bar, worker_lines
from orchestrator.results.quantities import axis_words, duration, percent
from orchestrator.results.rows import TrialRow

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_TICK_SECONDS = 5.0
"""Shortest time between two ticks of one phase in a log, where each is a line for ever."""


class Progress:
    """Phase, trials, validation front so far, and time left.

    `seconds` tells where the time went, per timed phase. It is a context manager; outside the
    `with` block it prints plain lines. It belongs to one thread. `terminal` None asks `stream`
    (stderr by default); a `quiet` one says nothing. `now` gives seconds on a monotonic scale.
    `told` is given the innermost timed phase whenever it changes, and "" outside of all.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        terminal: bool | None = None,
        quiet: bool = False,
        now: Callable[[], float] = time.perf_counter,
        told: Callable[[str], object] = lambda doing: None,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._quiet = quiet
        self._now = now
        self._told = told
        self._clock = PhaseClock(now)
        self._live: Live | None = None
        self._started = now()
        self._phase = ""
        self._tick = ""
        self._last_tick = ""
        self._ticked_at = float("-inf")
        self._doing = [""]
        self.shown_workers: tuple[str, ...] = ()
        self._front: Sequence[TrialRow] = ()
        self._completed: list[TrialRow] = []
        self._goal = Goal()
        self._done = 0
        self._total = 0
        self._ends_at: float | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds per name given to `timed`, inner phases taken out of outer ones."""
        return self._clock.seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self._doing.append(name)
        self._told(name)
        try:
            with self._clock.timed(name):
                yield
        finally:
            self._doing.pop()
            self._told(self._doing[-1])

    def phase(self, name: str, detail: str = "") -> None:
        """A new phase begins."""
        self._phase = f"{name}: {detail}" if detail else name
        self._tick = ""
        self.shown_workers = ()
        self._last_tick = ""
        self._ticked_at = float("-inf")
        elapsed = duration(self._now() - self._started)
        self._say(", ".join([f"[{elapsed}] {self._phase}", *self._time_left()]))

    def trial(self, row: TrialRow, front: Sequence[TrialRow], done: int, total: int) -> None:
        """A trial came to its end.

        `front` holds the completed trials that none of the others dominates, on validation data.
        """
        self._front = front
        if row.state == "completed":
            self._completed.append(row)
        self._done = done
        self._total = total
        self._say(self._trial_line(row))

    def tick(self, text: str) -> None:
        """Something moved inside the phase.

        A log has at most one such line in five seconds, and none that says the same again.
        """
        self._tick = text
        if self._live is not None or text in ("", self._last_tick):
            return
        if self._now() - self._ticked_at >= _TICK_SECONDS:
            self._last_tick = text
            self._ticked_at = self._now()
            self._say(f"  {text}")

    def workers(self, states: Sequence[str]) -> None:
        """What each worker does; a log is told by `tick`."""
        self.shown_workers = tuple(states)

    def goal(self, goal: Goal) -> None:
        """Of which model of the front the display speaks."""
        self._goal = goal

    def eta(self, seconds: float) -> None:
        """The run is expected to end in so many seconds; shown with what comes next."""
        self._ends_at = self._now() + seconds

    def __enter__(self) -> Self:
        if self._terminal and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            # two frames a second: the display takes its time from the training
            self._live = Live(
                get_renderable=self._picture,
                console=Console(file=self._stream, highlight=False, force_terminal=True),
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str) -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(line, markup=False)
        else:
            print(line, file=self._stream, flush=True)

    def _trial_line(self, row: TrialRow) -> str:
        parts = [f"trial {row.number} {row.state}"]
        if row.reason:
            parts.append(row.reason)
        if row.quality is not None:
            parts.append(f"quality {row.quality:.4f}")
        if row.cost_ratio:
            parts.append(f"{percent(row.cost_ratio)} of the {axis_words(row.axis)}")
        elif "flops" in row.ratios:
            # a measured cost is not known of a trial that was stopped
            parts.append(f"{percent(row.ratios['flops'])} of the FLOPs")
        if row.parent is not None:
            parts.append(f"from trial {row.parent}")
        parts.append(duration(row.seconds))
        if self._live is None:
            # the live display has these below
            parts += [f"{self._done}/{self._total} done", f"front of {len(self._front)}"]
            parts += self._time_left()
        return ", ".join(parts)

    def _time_left(self) -> list[str]:
        if self._ends_at is None:
            return []
        left = self._ends_at - self._now()
        return [f"about {duration(left)} left" if left > 0 else "longer than expected"]

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        facts = [f"{self._done}/{self._total} trials"] if self._total else []
        facts += [duration(self._now() - self._started), *self._time_left()]
        # with workers, what this process does is to wait for them
        doing = worker_lines(self.shown_workers) or [self._tick or self._doing[-1]]
        if self._phase.startswith(doing[0]):
            doing = []
        lines = [*doing, *front_lines(self._front, self._completed, self._goal)]
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line]
        phase = Text(self._phase, style="bold", no_wrap=True, overflow="ellipsis")
        return Group(study_bar(self._done, self._total, facts), phase, *texts)
