"""Ctrl-C and SIGTERM as an exception, so that every `finally` runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Stopped(BaseException):
    """Not a KeyboardInterrupt: Lightning turns that one into exit code 1. Not an Exception: nothing that deals with a
    failed trial may take it for one.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def stoppable(signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Inside, a signal raises `Stopped` in the main thread, the second one ends the process."""
    before = {number: signal.signal(number, _stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def beginning_processes() -> Iterator[None]:
    """Inside, SIGTERM waits for the end, so that no process is begun and forgotten; Ctrl-C is not heard.

    Nor do the processes hear it that are begun inside, although a terminal sends it to all: whoever began them tells
    them to end, once, and their cleaning up is not cut short by the second signal.
    """
    waiting: list[int] = []
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: waiting.append(number)),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(signal.SIGTERM)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    # A second signal ends the process at once: whoever sends it does not want to wait for the cleaning up.
    signal.signal(signum, signal.SIG_DFL)
    raise Stopped(signum)
