"""Records on disk: one small file each, numbered in the order in which they are to arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_modules.errors import StorageError, UserError
from orchestrator.files import write_atomic
from orchestrator.redact import redact_tree

_STUDY = "study.json"
_REFUSED = "refused"


class Spool:
    """A folder of records, made when the first is written. Nothing in it holds a secret.

    Errors: UserError where the disk takes no more; the other records stay whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        numbers = [int(path.stem) for path in folder.rglob("[0-9]*.json")]
        self._last = max(numbers, default=0)

    @property
    def study(self) -> dict[str, Any]:
        """The study that `remember` was given last; empty before."""
        path = self.folder / _STUDY
        try:
            return self.read(path) if path.exists() else {}
        except ValueError as error:
            raise UserError(
                f"'{path}' must be JSON as it was written; it is not ({error}); delete it"
            ) from error

    def remember(self, study: Mapping[str, object]) -> None:
        self._write(_STUDY, study)

    def waiting(self) -> list[Path]:
        """The files of the records that were not removed, oldest first."""
        return sorted(self.folder.glob("[0-9]*.json"), key=lambda path: int(path.stem))

    def add(self, record: Mapping[str, object]) -> None:
        self._last += 1
        self._write(f"{self._last:06d}.json", record)

    def read(self, path: Path) -> dict[str, Any]:
        """The record in a file.

        Errors: ValueError where the file is not as it was written.
        """
        with _mendable(self.folder):
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def remove(self, path: Path) -> None:
        with _mendable(self.folder):
            path.unlink()

    def set_aside(self, path: Path) -> Path:
        """Keeps a file elsewhere that nobody will take, and returns its new path.

        The records behind it need not wait for it.
        """
        with _mendable(self.folder):
            kept = self.folder / _REFUSED / path.name
            kept.parent.mkdir(exist_ok=True)
            return path.rename(kept)

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        with _mendable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / name, json.dumps(plain(content), indent=1))


def plain(content: Any) -> Any:
    """As it comes back from a file: JSON's types alone, without secrets."""
    return redact_tree(json.loads(json.dumps(content, default=str)))


@contextmanager
def _mendable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, StorageError) as error:
        reason = getattr(error.__cause__ or error, "strerror", error)
        raise UserError(
            f"records for tracking are kept in '{folder}' until they are sent; it cannot be used "
            f"({reason}); make room there and give the same command again (or tracking=none)"
        ) from error
