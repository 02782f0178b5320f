"""Ctrl-C and SIGTERM as an exception, so that every `finally` runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
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
def stoppable() -> Iterator[None]:
    """Inside, a signal raises `Stopped` in the main thread, the second one ends the process."""
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    # A second signal ends the process at once: whoever sends it does not want to wait for the cleaning up.
    signal.signal(signum, signal.SIG_DFL)
    raise Stopped(signum)
