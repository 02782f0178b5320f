"""One worker: a process that runs trials for the process that began it, and ends with it.

It imports little at its begin: a worker whose parent is killed while it still imports ends at once,
too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from lightning_modules.errors import UserError
from orchestrator.redact import redact
from orchestrator.settings import Settings
from orchestrator.stopped import Stopped, stoppable

GRACE_SECONDS = 30.0
"""Seconds that a worker has to put its trial back and end, once it was told to."""


def run_worker(settings: Settings, log: str, parent: int) -> None:
    """The life of one worker process, its output in `log`.

    `parent` is the process number of the process that began it.
    """
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for standard in (1, 2):
        os.dup2(stream, standard)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # this takes seconds, in which a signal ends the process
    from orchestrator.workers.helping import help_alone

    try:
        with stoppable([signal.SIGTERM]):
            help_alone(settings, told=phase_file(Path(log)).write_text)
    except Stopped as stopped:
        sys.exit(128 + stopped.signum)
    except UserError as error:
        print(redact(str(error)), file=sys.stderr, flush=True)
        sys.exit(2)
    except Exception as error:
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
        sys.exit(1)


def phase_file(log: Path) -> Path:
    """Where a worker says what it does."""
    return log.with_suffix(".phase")


def phase_of(log: Path) -> str:
    """What a worker does now: a phase, empty between two trials."""
    try:
        return phase_file(log).read_text()
    except OSError:
        return "starts"


def _end_with(parent: int) -> None:
    """Make this worker put its trial back and end when its parent was killed.

    Nobody would end it otherwise.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    for _ in range(2):
        # The signal reaches the main thread, also where it sleeps. The second one ends the process
        # whatever became of the first.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
