"""Where studies are kept: a journal file beside the results, or a database."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from lightning_modules.errors import DataError
from orchestrator.files import writing
from orchestrator.redact import redact
from orchestrator.settings import Settings
from orchestrator.stopped import signals_held

try:
    import fcntl
except ImportError:  # not on Windows, where Optuna's own lock file has to do
    fcntl = None  # type: ignore[assignment]


def storage_of(settings: Settings) -> BaseStorage:
    """Where the study of this name is kept. Errors: ConfigError for a database that cannot be
    opened.
    """
    if (url := settings.study.storage) is None:
        return journal(settings.study.folder / "study.journal")
    from orchestrator.search.studies.database import (
        database,
    )  # SQLAlchemy, which a journal does not need

    return database(url, settings.study.storage_patience)


@contextmanager
def readable(settings: Settings) -> Iterator[None]:
    """Around what opens a study. Errors: DataError for a journal or a database that Optuna did not
    write so.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AssertionError, OSError, OptunaError) as error:
        where = settings.study.storage or settings.study.folder / "study.journal"
        raise DataError(
            redact(
                f"the study's storage must be one that Optuna wrote; {where} cannot be read: "
                f"{type(error).__name__}: "
                f"{error}; put back a copy, or move {settings.study.folder} away and begin anew"
            )
        ) from None


def journal(path: Path) -> BaseStorage:
    """One file, for processes that share its folder."""
    return WholeJournalStorage(JournalFileBackend(str(path)) if fcntl is None else Journal(path))


class WholeJournalStorage(JournalStorage):
    """A signal does not cut short the reading, which would leave another study in memory than in
    the journal: a trial that this process has claimed would not be put back.
    """

    def _sync_with_backend(self) -> None:
        with signals_held():
            super()._sync_with_backend()


class Journal(BaseJournalBackend):
    """Optuna's journal in one file, safe against processes that are killed in the middle of a line.

    The lock is the kernel's (`flock`): it ends with the process that holds it, where a lock file
    would stay behind. A line without its end was never acknowledged to anybody; the next writer
    takes it away before it appends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = JournalFileBackend(str(path))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        return self._reader.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Errors: StorageError where the file cannot be written, such as on a full disk; it then is
        as it was.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        # without a buffer: what one could not write it would write once more when it is closed,
        # behind the end
        with (
            signals_held(),
            writing(self._path),
            open(self._path, "r+b", buffering=0) as stream,
            _locked(stream),
        ):
            end = _end_of_last_line(stream)
            stream.truncate(end)
            stream.seek(end)
            try:
                _write(stream, lines)
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(end)
                raise


@contextmanager
def _locked(stream: FileIO) -> Iterator[None]:
    fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def _write(stream: FileIO, data: bytes) -> None:
    """All of it: a file without a buffer takes what there is room for and says how much."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


def _end_of_last_line(stream: FileIO) -> int:
    """The byte behind the last newline."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 65536)
        stream.seek(begin)
        found = stream.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
