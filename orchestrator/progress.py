"""What a person sees during a run: a live display on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from orchestrator.clock import PhaseClock
from orchestrator.results.quantities import axis_words, duration, percent
from orchestrator.results.rows import TrialRow

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_TICK_SECONDS = 5.0
"""Shortest time between two ticks of one phase in a log, where each is a line for ever."""
_FRONT_LINES = 10
"""Most lines of the front on a terminal."""


class Progress:
    """Phase, trials, validation front so far, and time left.

    `seconds` tells where the time went, per timed phase. It is a context manager; outside the
    `with` block it prints plain lines. It belongs to one thread. `terminal` None asks `stream`
    (stderr by default); `now` gives seconds on a monotonic scale.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        terminal: bool | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._now = now
        self._clock = PhaseClock(now)
        self._live: Live | None = None
        self._started = now()
        self._phase = ""
        self._tick = ""
        self._last_tick = ""
        self._ticked_at = float("-inf")
        self._front: Sequence[TrialRow] = ()
        self._done = 0
        self._total = 0
        self._ends_at: float | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds per name given to `timed`, inner phases taken out of outer ones."""
        return self._clock.seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        with self._clock.timed(name):
            yield

    def phase(self, name: str, detail: str = "") -> None:
        """A new phase begins."""
        self._phase = f"{name}: {detail}" if detail else name
        self._tick = ""
        self._last_tick = ""
        self._ticked_at = float("-inf")
        elapsed = duration(self._now() - self._started)
        self._say(", ".join([f"[{elapsed}] {self._phase}", *self._time_left()]))

    def trial(self, row: TrialRow, front: Sequence[TrialRow], done: int, total: int) -> None:
        """A trial came to its end.

        `front` holds the completed trials that none of the others dominates, on validation data.
        """
        self._front = front
        self._done = done
        self._total = total
        self._say(self._trial_line(row))

    def tick(self, text: str) -> None:
        """Something moved inside the phase.

        A log has at most one such line in five seconds, and none that says the same again.
        """
        self._tick = text
        if self._live is not None or text == self._last_tick:
            return
        if self._now() - self._ticked_at >= _TICK_SECONDS:
            self._last_tick = text
            self._ticked_at = self._now()
            self._say(f"  {text}")

    def eta(self, seconds: float) -> None:
        """The run is expected to end in so many seconds; shown with what comes next."""
        self._ends_at = self._now() + seconds

    def __enter__(self) -> Self:
        if self._terminal:
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
        parts += [
            duration(row.seconds),
            f"{self._done}/{self._total} done",
            f"front of {len(self._front)}",
        ]
        return ", ".join([*parts, *self._time_left()])

    def _time_left(self) -> list[str]:
        if self._ends_at is None:
            return []
        return [f"about {duration(max(0.0, self._ends_at - self._now()))} left"]

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        facts = [f"{self._done}/{self._total} trials"] if self._total else []
        facts += [duration(self._now() - self._started), *self._time_left()]
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self._phase, style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._done, width=30),
            Text(", ".join(facts)),
        )
        parts: list[RenderableType] = [head]
        if self._tick:
            parts.append(Text(self._tick, style="dim"))
        if self._front:
            parts.append(_front_so_far(self._front))
        return Group(*parts)


def _front_so_far(front: Sequence[TrialRow]) -> RenderableType:
    from rich.table import Table

    ordered = sorted(front, key=lambda row: -row.cost_ratio)
    # a long front is thinned evenly, its two ends kept
    step = max(1.0, (len(ordered) - 1) / (_FRONT_LINES - 1))
    table = Table(title="validation front so far", title_justify="left", box=None)
    metrics = list(ordered[0].metrics)
    for header in ("trial", axis_words(ordered[0].axis), "quality", *metrics):
        table.add_column(header, justify="right")
    for index in range(min(len(ordered), _FRONT_LINES)):
        row = ordered[round(index * step)]
        quality = "" if row.quality is None else f"{row.quality:.4f}"
        further = [f"{row.metrics[name]:.4f}" for name in metrics]
        table.add_row(str(row.number), percent(row.cost_ratio), quality, *further)
    return table
