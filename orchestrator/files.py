"""Files that are whole or do not exist at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_modules.errors import StorageError, UserError


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around the writing of a file.

    Errors: StorageError where the file system refuses it.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"files of a run must be writable; '{path}' is not ({error.strerror}); what was "
            "finished is kept: make room or mend the permissions, and give the same command again"
        ) from error


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Replaces `path` in one step.

    So a reader, or a run killed half way, never sees half a file. Text is written as UTF-8 with the
    newlines it has; the folder is made where it is missing. Errors: StorageError, such as on a full
    disk; `path` then is as it was.
    """
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # not tempfile: its files are private to the owner (0600), results should follow the umask
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def require_writable(folder: str | Path) -> Path:
    """The folder, created with its parents and proved writable by writing.

    Errors: UserError when it is not writable.
    """
    target = Path(folder)
    probe = target / f".probe.{uuid.uuid4().hex}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"folder must be writable; '{target}' is not ({error.strerror}); "
            "choose another place or change its permissions"
        ) from error
    return target
