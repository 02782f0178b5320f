"""What stands in for a worker process: nothing is imported here that takes time to begin with."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def refuses(settings: Any, log: str, parent: int) -> None:
    Path(log).write_text("data.folder must be there; '/nowhere' is not\n")
    sys.exit(2)


def dies(settings: Any, log: str, parent: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(settings: Any, log: str, parent: int) -> None:
    return


def stays(settings: Any, log: str, parent: int) -> None:
    Path(log).write_text("here\n")
    while os.getppid() == parent:
        time.sleep(0.05)
