"""Folders as artifacts of an MLflow run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.errors import UserError
from orchestrator.tracking import TrackerError
from orchestrator.tracking.folders import RunFolders


def folders(tmp_path: Path, **changes: object) -> RunFolders:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found = RunFolders(uri, "pruning", "id-of-study", 60.0, **changes)  # type: ignore[arg-type]
    found.open("study")
    return found


def test_what_is_put_by_one_is_got_by_another(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "3"
    mine.mkdir(parents=True)
    (mine / "plan.json").write_text("{}")
    (mine / "weights").write_bytes(bytes(1000))
    folders(tmp_path).put(mine, "trials/3")
    theirs = tmp_path / "theirs" / "3"
    folders(tmp_path).get("trials/3", theirs)
    assert sorted(path.name for path in theirs.iterdir()) == ["plan.json", "weights"]
    assert (theirs / "weights").read_bytes() == bytes(1000)
    assert [path.name for path in theirs.parent.iterdir()] == [
        "3"
    ]  # nothing half fetched lies about


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    folders(tmp_path).get("trials/7", there)  # which the run does not have
    assert list(there.iterdir()) == []


def test_a_server_that_is_away_is_asked_again_and_given_up_after_a_while(tmp_path: Path) -> None:
    clock, calls = [0.0], []

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    store = folders(tmp_path, now=lambda: clock[0], sleep=sleep)

    def fails() -> None:
        calls.append(clock[0])
        if len(calls) != 4:
            raise TrackerError("away", reason="connection refused")

    store._patiently(fails)
    assert calls == [0.0, 1.0, 3.0, 7.0]
    with pytest.raises(
        UserError, match=r"has not for 60 s \(study.storage_patience\): connection refused"
    ):
        store._patiently(fails)
