"""Lightning's advice is kept from the user: it is about trainers that he does not see."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences advice on loader workers, log intervals and unused devices.

    It does not apply to batches in memory, and to trainers that never run.
    """
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    remarks = r".*(does not have many workers|isinstance\(treespec|available but not used).*"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
        warnings.filterwarnings("ignore", message=remarks)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
