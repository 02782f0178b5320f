"""Limits of time and memory for a call that has no limits of its own."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lightning_modules.errors import DiscoveryError

T = TypeVar("T")
IDLE = 10.0
"""Multiple of the limit that may pass by the clock.

Other processes may keep the processor busy, but nothing waits for ever.
"""
STRIKE_SECONDS = 1.0
"""Seconds between two tries to interrupt the call."""


class _Stop(BaseException):
    """Raised inside the limited call. A library's `except Exception` cannot swallow it."""


def limited(call: Callable[[], T], seconds: float, memory_gb: float, period: float = 0.05) -> T:
    """The result of `call`, which is interrupted if it takes too long or too much memory.

    It runs in this thread. `seconds` is the process's CPU time, or time by the clock where that is
    less; by the clock it may take `IDLE` times as long. Memory is the growth of the resident set of
    the whole process, looked at every `period` seconds. A single long call into native code is
    interrupted only when it ends.
    Errors: DiscoveryError that names the limit.
    """
    breach: list[str] = []
    done = threading.Event()
    watchdog = threading.Thread(
        target=_watch,
        args=(threading.get_ident(), done, breach, seconds, memory_gb, period),
        daemon=True,
    )
    result: list[T] = []
    try:
        watchdog.start()
        result.append(call())
    except _Stop:
        pass
    finally:
        _settle(done, watchdog, breach)
    if breach and not result:
        raise DiscoveryError(breach[0])
    return result[0]


def _watch(
    caller: int,
    done: threading.Event,
    breach: list[str],
    seconds: float,
    memory_gb: float,
    period: float,
) -> None:
    """Interrupt the thread `caller`, and say why in `breach`, if a limit is passed."""
    start = time.monotonic()
    start_cpu = time.process_time()
    start_gb = _resident_gb()
    while not done.wait(period):
        passed = time.monotonic() - start
        grown = _resident_gb() - start_gb
        worked = min(passed, time.process_time() - start_cpu)
        if worked > seconds or passed > IDLE * seconds:
            breach.append(
                f"finding the structure must end within {seconds:g} s and took longer; raise "
                "`seconds`"
            )
        elif grown > memory_gb:
            breach.append(
                f"finding the structure must take at most {memory_gb:g} GB and took {grown:.1f} GB;"
                " raise `memory_gb`"
            )
        if breach:
            # again and again, in case a bare `except:` in between has swallowed it
            _strike(caller)
            if done.wait(STRIKE_SECONDS):
                return


def _settle(done: threading.Event, watchdog: threading.Thread, breach: list[str]) -> None:
    """End the watchdog. If it struck, make sure that no exception of it is still pending.

    One more exception is set and awaited. The slot holds only one, so it is empty after a raise.
    Setting None instead would leave the interpreter looking for an exception for ever, which slows
    it down and hangs profilers.
    """
    awaited = False
    while True:
        try:
            done.set()
            if watchdog.ident is not None:
                watchdog.join()
            if not breach:
                return
            awaited = True
            _strike(threading.get_ident())
            while True:
                time.sleep(0.001)
        except _Stop:
            if awaited:
                return


def _strike(thread: int) -> None:
    """Raise `_Stop` in another thread."""
    identifier = ctypes.c_ulong(thread)
    exception = ctypes.py_object(_Stop)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(identifier, exception)


def _resident_gb() -> float:
    """The resident set of this process in GB; where /proc is missing, its largest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        return pages * resource.getpagesize() / 1e9
    bytes_per_count = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_count / 1e9
