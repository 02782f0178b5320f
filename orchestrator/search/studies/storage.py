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
except ImportError:
    # not on Windows, where Optuna's own lock file has to do
    fcntl = None  # type: ignore[assignment]


def storage_of(settings: Settings) -> BaseStorage:
    """Where the study of this name is kept.

    Errors: ConfigError for a database that cannot be opened.
    """
    url = settings.study.storage
    if url is None:
        return journal(settings.study.folder / "study.journal")
    # a journal does not need SQLAlchemy
    from orchestrator.search.studies.database import database

    return database(url, settings.study.storage_patience)


@contextmanager
def readable(settings: Settings) -> Iterator[None]:
    """Around the code that opens a study.

    Errors: DataError for a journal or a database that is not as Optuna wrote it.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AssertionError, OSError, OptunaError) as error:
        where = settings.study.storage or settings.study.folder / "study.journal"
        message = (
            f"the study's storage must be one that Optuna wrote; {where} cannot be read: "
            f"{type(error).__name__}: {error}; put back a copy, or move {settings.study.folder} "
            "away and begin anew"
        )
        raise DataError(redact(message)) from None


def journal(path: Path) -> BaseStorage:
    """One file, for processes that share its folder."""
    backend = JournalFileBackend(str(path)) if fcntl is None else Journal(path)
    return WholeJournalStorage(backend)


class WholeJournalStorage(JournalStorage):
    """A journal storage that a signal does not interrupt while it reads.

    Otherwise the study in memory would not be that of the journal, and a trial that this process
    has claimed would not be put back.
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
        """Append all logs, or none.

        Errors: StorageError where the file cannot be written, such as on a full disk; it then is
        as it was.
        """
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        data = "".join(lines).encode()
        # Without a buffer: a buffer that could not be written would be written once more when it is
        # closed, after the end of the file.
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
                _write(stream, data)
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
    """Write all of it.

    A file without a buffer takes what there is room for and returns how much that was.
    """
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


def _end_of_last_line(stream: FileIO) -> int:
    """The byte behind the last newline."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 65536)
        stream.seek(begin)
        newline = stream.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
