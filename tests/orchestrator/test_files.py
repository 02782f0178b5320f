"""Files are whole or not there; folders are proved writable before the work."""

import os
from pathlib import Path

import pytest

from lightning_modules.errors import StorageError, UserError
from orchestrator.files import require_writable, write_atomic


@pytest.mark.parametrize("content", ["grün\r\n", b"\x00\xff", ""])
def test_content_arrives_as_it_is_and_replaces_what_was_there(
    tmp_path: Path, content: str | bytes
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"'.*a.txt' is not \(No space left on device\); .*make room"
    ):
        write_atomic(path, "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_writable_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    folder = require_writable(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())
    assert require_writable(folder) == folder


def test_a_folder_that_cannot_be_made_is_named_with_the_reason_and_the_remedy(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"must be writable; '.*file/x' is not \(Not a directory\); choose another"
    ):
        require_writable(tmp_path / "file" / "x")
