"""Processes that begin with everything imported: forked from one that imports it once for all of
them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.cheap import SHARED, make_cheap

ROOT = Path(__file__).parents[1]

PATIENCE = 60.0
"""Seconds within which a process ends that has said all."""
PRELOADED = [
    "tests.cheap",
    "orchestrator.jobs.search",
    "orchestrator.jobs.work",
    "orchestrator.search.studies.study",
    "matplotlib.pyplot",
    "torchvision",
]


class Forked:
    """What of `subprocess.Popen` the tests use, for one command line of Python.

    Its `words` are what follows `python`: `-m orchestrator` with what belongs to it, or the name of
    a script and its arguments.
    """

    def __init__(self, folder: Path, words: list[str], environment: Mapping[str, str]) -> None:
        context = ready()
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


def output_of(words: list[str], folder: Path) -> str:
    """What such a command line says. It must succeed."""
    process = Forked(folder, words, {"OMP_NUM_THREADS": "1"})
    with process.stdout as stream:
        text = stream.read()
    assert process.wait(PATIENCE) == 0, text
    return text


def ready() -> ForkServerContext:
    """Begins processes by forking one that has imported everything; it is started here, if need
    be.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


def _serve(
    folder: str, words: list[str], environment: dict[str, str], shared: Path, said: Connection
) -> None:
    """In the new process: a group of its own, a place of its own, one stream for all that is
    said.
    """
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # as where nobody chose one
    os.chdir(folder)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (1, 2):
        os.dup2(said.fileno(), number)
    said.close()
    sys.path.insert(0, folder)
    with pytest.MonkeyPatch.context() as patch:
        make_cheap(patch, shared)
        _execute(words)


def _execute(words: list[str]) -> None:
    if words[:2] != ["-m", "orchestrator"]:
        sys.argv[:] = words
        runpy.run_path(str(Path.cwd() / words[0]), run_name="__main__")
        return
    from orchestrator.__main__ import main

    sys.exit(main(words[2:]))
