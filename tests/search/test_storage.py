"""Where studies are kept: a journal that is cut or finds no room, a database that does not
answer.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from lightning_modules.errors import ConfigError, StorageError
from orchestrator.search.studies.database import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    PatientStorage,
    database,
)
from orchestrator.search.studies.storage import Journal, WholeJournalStorage
from orchestrator.stopped import Stopped, stoppable

LOGS: list[dict[str, Any]] = [{"op_code": 4, "text": "ü" * length} for length in (3, 50, 9000)]
URL = "postgresql+psycopg://me:p%40ss%3Aw%2Frd-hunter2@127.0.0.1:1/db"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four blocks."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder]).returncode
    ):
        pytest.skip("needs a mount of its own, which only root may make")
    yield folder
    subprocess.run(["umount", folder], check=True)


def read(path: Path) -> list[dict[str, Any]]:
    return list(Journal(path).read_logs(0))


def written(path: Path, logs: list[dict[str, Any]]) -> list[int]:
    """The journal with one line per log; where each line ends."""
    ends = []
    for log in logs:
        Journal(path).append_logs([log])
        ends.append(path.stat().st_size)
    return ends


def test_a_line_cut_anywhere_is_mended_by_the_next_writer_and_nothing_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    ends = written(tmp_path / "whole", LOGS[:2])
    whole = (tmp_path / "whole").read_bytes()
    for cut in range(ends[0], ends[1]):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(whole[:cut])
        reader = Journal(path)
        assert list(reader.read_logs(0)) == LOGS[:1]
        Journal(path).append_logs(LOGS[2:])
        assert list(reader.read_logs(1)) == LOGS[2:]  # also for one that has read the cut line
        assert read(path) == [LOGS[0], LOGS[2]]


def test_a_long_line_without_its_end_is_found_from_behind(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, LOGS[:1])
    before = path.read_bytes()
    path.write_bytes(before + b"x" * 200_000)
    Journal(path).append_logs(LOGS[1:2])
    assert read(path) == LOGS[:2]
    path.write_bytes(b"x" * 200_000)
    Journal(path).append_logs(LOGS[:1])
    assert path.read_bytes() == before


def test_a_journal_that_cannot_be_flushed_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    written(path, LOGS[:2])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            StorageError,
            match=r"must be writable; '.*' is not \(No space left on device\); .*again",
        ):
            Journal(path).append_logs(LOGS[2:])
    assert path.read_bytes() == before
    Journal(path).append_logs(LOGS[2:])
    assert read(path) == LOGS


def test_a_journal_on_a_full_disk_stays_as_it_was(small_disk: Path) -> None:
    """What did not fit has room again once the part that did is removed: nothing may be left to be
    written then.
    """
    path, room = small_disk / "journal", small_disk / "room"
    written(path, LOGS[:2])
    before = path.read_bytes()
    room.write_bytes(b"x" * 8192)
    for _ in range(3):
        with pytest.raises(StorageError, match="No space left on device"):
            Journal(path).append_logs([{"text": "y" * 8100}])
        assert path.read_bytes() == before
    room.unlink()
    Journal(path).append_logs(LOGS[1:2])
    assert read(path) == [*LOGS[:2], LOGS[1]]


def test_a_journal_that_reaches_the_limit_of_its_disk_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, LOGS[:2])
    before = path.read_bytes()
    code = f"""
        import resource, pathlib
        from orchestrator.search.studies.storage import Journal
        from lightning_modules.errors import StorageError
        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)} + 4096, {len(before)} + 4096))
        try:
            Journal(pathlib.Path({str(path)!r})).append_logs([{{"text": "y" * 9000}}])
        except StorageError as error:
            print(error)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "(File too large)" in found.stdout
    assert path.read_bytes() == before


def test_the_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, LOGS[:1])
    code = (
        "import sys; from orchestrator.search.studies.storage import _locked\n"
        f"with open({str(path)!r}, 'r+b', buffering=0) as stream, _locked(stream):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        Journal(path).append_logs(LOGS[1:2])
    assert read(path) == LOGS[:2]


def test_a_signal_waits_for_a_journal_to_be_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = WholeJournalStorage(Journal(tmp_path / "journal"))
    study_id = kept.create_new_study([StudyDirection.MINIMIZE], "s")
    apply = kept._replay_result.apply_logs

    def flushed(descriptor: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    def applied(logs: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        apply(logs)

    for owner, name, call in ((os, "fsync", flushed), (kept._replay_result, "apply_logs", applied)):
        trial_id = kept.create_new_trial(study_id)
        before = signal.getsignal(signal.SIGTERM)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, call)
            with pytest.raises(Stopped), stoppable():
                kept.set_trial_user_attr(trial_id, "a", 1)
        assert signal.getsignal(signal.SIGTERM) == before
        with open(tmp_path / "journal") as journal:
            assert '"user_attr":{"a":1}' in journal.readlines()[-1]
        assert kept.get_trial(trial_id).user_attrs == {"a": 1}


class Clock:
    """Time passes while somebody sleeps, and at once."""

    def __init__(self, on_sleep: Callable[[float], object] = lambda now: None) -> None:
        self.now, self.pauses, self._on_sleep = 0.0, list[float](), on_sleep

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        self._on_sleep(self.now)


def patient(inner: Any, patience: float, clock: Clock, url: str = URL) -> Any:
    return PatientStorage(inner, url, patience, clock, clock.sleep)


class Away:
    """A storage that answers from `back` seconds on."""

    def __init__(self, clock: Clock, back: float) -> None:
        self.clock, self.back = clock, back

    def get_all_studies(self) -> list[int]:
        if self.clock.now < self.back:
            said = Exception(f'connection to "{URL}" failed')
            raise StorageInternalError(
                "An exception is raised during the commit."
            ) from OperationalError("", {}, said)
        return [1, 2]


def test_a_database_that_comes_back_is_asked_again_at_growing_intervals() -> None:
    clock = Clock()
    assert patient(Away(clock, 100.0), 600.0, clock).get_all_studies() == [1, 2]
    assert clock.pauses[:5] == [FIRST_PAUSE, 1.0, 2.0, 4.0, 8.0]
    assert max(clock.pauses) == LONGEST_PAUSE
    assert 100.0 <= clock.now < 100.0 + LONGEST_PAUSE


def test_a_database_that_stays_away_ends_the_run_without_its_password() -> None:
    clock = Clock()
    with pytest.raises(
        StorageError, match=r"study.storage must answer; 'postgresql.*' has not for 60 s .*again"
    ) as told:
        patient(Away(clock, 1000.0), 60.0, clock).get_all_studies()
    assert 30.0 < clock.now <= 60.0
    assert "hunter2" not in str(told.value)
    assert "127.0.0.1" in str(told.value)
    assert told.value.__suppress_context__  # nor in a traceback


def test_a_run_that_ends_for_a_database_does_not_wait_for_it_again() -> None:
    clock = Clock()
    away = Away(clock, 1000.0)
    storage = patient(away, 60.0, clock)
    for _ in range(3):  # the call that gave up, the trial to be put back, the lead to be let go
        with pytest.raises(StorageError):
            storage.get_all_studies()
    assert clock.now <= 60.0
    away.back = 0.0
    storage.get_all_studies()
    away.back = clock.now + 30.0
    assert storage.get_all_studies() == [1, 2]


@pytest.fixture
def study_and_lock(tmp_path: Path) -> Iterator[tuple[Any, int, sqlite3.Connection]]:
    """A storage on SQLite that waits for nobody, a study's id, and a connection that can lock the
    database.
    """
    engine = {"connect_args": {"timeout": 0.01}}
    inner = optuna.storages.get_storage(
        optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db", engine_kwargs=engine)
    )
    study_id = inner.create_new_study([StudyDirection.MINIMIZE], "s")
    locker = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    yield inner, study_id, locker
    locker.close()
    inner.remove_session()


def test_a_locked_database_is_waited_for(
    study_and_lock: tuple[Any, int, sqlite3.Connection],
) -> None:
    inner, study_id, locker = study_and_lock
    trial = inner.create_new_trial(study_id)
    locker.execute("begin exclusive")
    clock = Clock(lambda now: locker.execute("commit") if now > 3.0 else None)
    patient(inner, 60.0, clock).set_trial_user_attr(trial, "a", 1)
    assert clock.pauses == [0.5, 1.0, 2.0]
    locker.execute("begin exclusive")
    with pytest.raises(
        StorageError, match=r"study.storage must answer; .* has not for 5 s .*database is locked"
    ):
        patient(inner, 5.0, Clock()).set_trial_user_attr(trial, "a", 2)
    locker.execute("commit")
    assert inner.get_trial(trial).user_attrs == {"a": 1}


def test_a_repeated_tell_is_refused_but_not_the_repetition_of_one_whose_answer_was_lost(
    study_and_lock: tuple[Any, int, sqlite3.Connection],
) -> None:
    inner, study_id, _ = study_and_lock
    clock = Clock()
    calm = patient(inner, 60.0, clock)
    trial = calm.create_new_trial(study_id)

    def loses(*arguments: Any) -> bool:
        inner.__class__.set_trial_state_values(inner, *arguments)
        del inner.set_trial_state_values
        raise StorageInternalError("server closed the connection")

    inner.set_trial_state_values = loses
    assert calm.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    assert clock.pauses == [FIRST_PAUSE]
    for again in (TrialState.COMPLETE, TrialState.FAIL):
        with pytest.raises(UpdateFinishedTrialError):
            calm.set_trial_state_values(trial, again, [1.0])
    assert inner.get_trial(trial).values == [1.0]


def test_a_repeated_tell_is_refused_by_the_journal(tmp_path: Path) -> None:
    kept = JournalStorage(Journal(tmp_path / "journal"))
    trial = kept.create_new_trial(kept.create_new_study([StudyDirection.MINIMIZE], "s"))
    kept.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    with pytest.raises(UpdateFinishedTrialError):
        kept.set_trial_state_values(trial, TrialState.COMPLETE, [2.0])
    assert kept.get_trial(trial).values == [1.0]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (URL, "must be a database that answers; 'postgresql"),
        ("nosuch+driver://me:rd-hunter2@host/db", "needs a driver for 'nosuch"),
        (
            "postgresql+psycopg://me:p@ss:w/rd-hunter2@host/db",
            "percent-encode what is no letter or digit",
        ),
        ("postgresql+psycopg://me:rd-hunter2@host:w/db", "must be a database that answers"),
        ("sqlite:////nowhere/s.db", "must be a database that answers"),
        ("hunter2", "must be a database that answers"),
    ],
)
def test_a_database_that_cannot_be_opened_is_refused_at_once(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"study\.storage") as told:
        database(url, 600.0)
    assert said in str(told.value)
    assert not [part for part in ("rd-hunter2", "ss:", "'w'") if part in str(told.value)]
