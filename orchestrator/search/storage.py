"""Where a study is kept: what cannot be read of it is the user's to mend, not a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import OptunaError
from optuna.storages.journal import JournalFileSymlinkLock
from sqlalchemy.exc import SQLAlchemyError

from lightning_modules.errors import DataError
from orchestrator.redact import redact
from orchestrator.settings import Settings


@contextmanager
def readable(settings: Settings) -> Iterator[None]:
    """Around what opens a study. Errors: DataError for a journal or a database that is damaged or cannot be had."""
    journal = settings.study.folder / "study.journal"
    try:
        if settings.study.storage is None and journal.exists():
            end_with_a_line(journal)
        yield
    except (ValueError, KeyError, TypeError, AssertionError, OSError, OptunaError, SQLAlchemyError) as error:
        where = settings.study.storage or journal
        raise DataError(
            redact(
                f"the study's storage must be one that Optuna wrote; {where} cannot be read: {type(error).__name__}: "
                f"{error}; put back a copy, or move {settings.study.folder} away and begin anew"
            )
        ) from None


def end_with_a_line(journal: Path) -> None:
    """Cut off what a killed run left of its last line: Optuna reads over it, and spoils it by appending to it."""
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        with journal.open("r+b") as stream:
            content = stream.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                stream.truncate(whole)
                os.fsync(stream.fileno())
                print(
                    f"{journal} ends within a line, which is left out: its run was killed", file=sys.stderr, flush=True
                )
    finally:
        lock.release()
