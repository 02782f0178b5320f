"""Processes that begin with everything imported: forked from one that imports it once for all of
them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.cheap import SHARED, make_cheap

ROOT = Path(__file__).parents[2]

PRELOADED = [
    "tests.cheap",
    "orchestrator.jobs.search",
    "orchestrator.jobs.work",
    "orchestrator.search.studies.study",
    "matplotlib.pyplot",
    "torchvision",
]


class Forked:
    """What of `subprocess.Popen` the tests use, for one command line of the orchestrator."""

    def __init__(self, folder: Path, words: list[str], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        _start_once()
        reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_serve, args=(str(folder), words, dict(environment), SHARED[0], writer)
        )
        self._process.start()
        writer.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.stdout = os.fdopen(os.dup(reader.fileno()), errors="replace")
        reader.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative after a signal. Errors: TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("orchestrator", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _start_once() -> None:
    """The process that the others are forked from, where it is not there yet: it imports tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        forkserver.ensure_running()


def _serve(
    folder: str, words: list[str], environment: dict[str, str], shared: Path, said: Connection
) -> None:
    """In the new process: a group of its own, a place of its own, one stream for all that is
    said.
    """
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (1, 2):
        os.dup2(said.fileno(), number)
    said.close()
    from orchestrator.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        make_cheap(patch, shared)
        sys.exit(main(words))
