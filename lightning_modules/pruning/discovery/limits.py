"""Limits of time and memory for a call that has none of its own."""

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
"""So many times the limit may pass by the clock: others may keep the processor busy, but nothing waits for ever."""


class _Stop(BaseException):
    """Raised inside the limited call; no `except Exception` of a library can swallow it."""


def limited(call: Callable[[], T], seconds: float, memory_gb: float, period: float = 0.05) -> T:
    """The result of `call`, run in this thread and interrupted when it takes too long or too much memory.

    `seconds` are of the process's CPU time, or by the clock where that is less; by the clock `IDLE` times as many.
    Memory is the growth of the resident set of the whole process. A single long call into native code ends first.
    Errors: DiscoveryError naming the limit.
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
    start, worked, before = time.monotonic(), time.process_time(), _resident_gb()
    while not done.wait(period):
        passed, grown = time.monotonic() - start, _resident_gb() - before
        taken = min(passed, time.process_time() - worked)
        if taken > seconds or passed > IDLE * seconds:
            breach.append(
                f"finding the structure must end within {seconds:g} s and took longer; raise `seconds`"
            )
        elif grown > memory_gb:
            breach.append(
                f"finding the structure must take at most {memory_gb:g} GB and took {grown:.1f} GB; raise `memory_gb`"
            )
        if breach:
            # Again every second, in case a bare `except:` in between swallowed it.
            _strike(caller)
            if done.wait(1.0):
                return


def _settle(done: threading.Event, watchdog: threading.Thread, breach: list[str]) -> None:
    """End the watchdog; if it struck, make sure that its exception has been raised and none is left behind.

    One more is set and awaited: setting None instead would leave the interpreter looking for an exception for ever,
    which slows it down and hangs profilers. The slot holds one exception, so after a raise it is empty.
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
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stop))


def _resident_gb() -> float:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
