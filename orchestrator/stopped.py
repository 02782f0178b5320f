"""Ctrl-C and SIGTERM as an exception, so that every `finally` runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_waiting: list[int] | None = None
"""Signals that came inside `signals_held`; None outside."""


class Stopped(BaseException):
    """A signal asks the process to end.

    It is no KeyboardInterrupt: Lightning turns that one into exit code 1. It is no Exception:
    nothing that deals with a failed trial may take it for one.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def stoppable(signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Inside, a signal raises `Stopped` in the main thread; the second one ends the process."""
    before = {number: signal.signal(number, _stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """Inside, a signal waits for the end.

    It is for work that takes milliseconds and may not be left half done.
    """
    global _waiting
    if threading.current_thread() is not threading.main_thread() or _waiting is not None:
        # handlers run only in the main thread; the outermost block raises
        yield
        return
    _waiting = []
    try:
        yield
    finally:
        waiting = _waiting
        _waiting = None
        if waiting:
            raise Stopped(waiting[0])


@contextmanager
def beginning_processes() -> Iterator[None]:
    """Inside, no process is begun and forgotten, and those that are begun do not hear Ctrl-C.

    A terminal sends it to all. Whoever began them tells them to end, once, and their cleaning up is
    not cut short by a second signal.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_held():
            yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(signum: int, frame: FrameType | None) -> None:
    # a second signal ends the process at once: whoever sends it does not want to wait for the
    # cleaning up
    signal.signal(signum, signal.SIG_DFL)
    if _waiting is None:
        raise Stopped(signum)
    _waiting.append(signum)
