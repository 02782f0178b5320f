"""Records outlast the server: in order, once, without secrets, and without holding the study up."""

from __future__ import annotations

import errno
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.errors import UserError
from orchestrator.tracking import Point, StudyResults, Tracker, TrackerError, TrialRecord
from orchestrator.tracking.none import NoTracker
from orchestrator.tracking.spooled import Spooled, spooled


class KilledError(BaseException):
    pass


class Server:
    """A `Tracker` as MLflow's, idempotent by trial number, out of reach while `down`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.down = False
        self.refuses: set[int] = set()
        self.calls: list[Any] = []
        self.trials: dict[int, dict[str, Any]] = {}
        self.tries = 0
        self.on_failure: Callable[[], None] = lambda: None

    def _reach(self) -> None:
        self.tries += 1
        if self.down:
            self.on_failure()
            raise TrackerError("a remedy", reason="http://me:pa55word@host says: refused")

    def open_study(self, name: str, tags: Any, params: Any) -> None:
        self._reach()
        self.calls.append(("open", name, params))

    def trial(self, record: TrialRecord) -> None:
        self._reach()
        number = record.number
        if number in self.refuses:
            raise TrackerError("never", reason="invalid value", refused=True)
        if number not in self.trials:
            self.trials[number] = {k: v for k, v in vars(record).items() if k != "number"}
            self.calls.append(number)

    def close_study(
        self, results: StudyResults, end: str = "finished", at: float | None = None
    ) -> None:
        self._reach()
        self.calls.append(("close", results.metrics, list(results.artifacts), end))

    def opened(self) -> int:
        return sum(isinstance(call, tuple) and call[0] == "open" for call in self.calls)

    def numbers(self) -> list[int]:
        return [call for call in self.calls if isinstance(call, int)]


class Desk:
    """A study with its clock, its spool and what was said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder / "spool", Server()
        self.time = 0.0
        self.said: list[str] = []

    def tracker(self, place: object = "here", study_id: str = "1", n_trials: int = 3) -> Spooled:
        tracker = Spooled(
            self.server, self.folder, place, say=self.said.append, now=lambda: self.time
        )
        tracker.open_study("s", {"study_id": study_id}, {"n_trials": n_trials})
        return tracker

    def waiting(self) -> int:
        return len(list(self.folder.glob("[0-9]*.json")))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def log(tracker: Tracker, number: int, **more: Any) -> None:
    given: dict[str, Any] = {"params": {}, "tags": {}, "metrics": {}, "curves": [], "artifacts": {}}
    tracker.trial(TrialRecord(number, state="completed", **(given | more)))


def test_with_a_server_that_answers_nothing_waits_and_nothing_is_said(desk: Desk) -> None:
    tracker = desk.tracker()
    curves = [Point("loss", 3, 0.1), Point("loss", 4, math.inf)]
    log(
        tracker,
        0,
        params={"a": 1},
        metrics={"x": math.nan, "y": 0.1},
        curves=curves,
        artifacts={"p": "{}"},
        at=5.0,
    )
    tracker.close_study(StudyResults({"front": 2.0}, []))
    assert desk.server.calls == [
        ("open", "s", {"n_trials": 3}),
        0,
        ("close", {"front": 2.0}, [], "finished"),
    ]
    arrived = desk.server.trials[0]
    assert math.isnan(arrived["metrics"].pop("x"))
    assert arrived == {
        "state": "completed",
        "params": {"a": 1},
        "tags": {},
        "metrics": {"y": 0.1},
        "curves": curves,
        "artifacts": {"p": "{}"},
        "at": 5.0,
        "title": "",
    }
    assert (desk.waiting(), desk.said) == (0, [])


def test_a_server_that_was_never_reached_is_an_error_and_leaves_no_trace(desk: Desk) -> None:
    desk.server.down = True
    with pytest.raises(UserError, match="a remedy"):
        desk.tracker()
    assert not desk.folder.exists()


def test_a_lost_server_is_said_once_and_gets_everything_in_order_once_it_is_back(
    desk: Desk,
) -> None:
    tracker = desk.tracker()
    log(tracker, 0)
    desk.server.down = True
    for number in (1, 2, 3):
        desk.time += 100.0
        log(tracker, number)
    assert desk.waiting() == 3
    (line,) = desk.said
    assert "http://me:***@host says: refused; the study goes on, its records wait in" in line
    desk.server.down = False
    desk.time += 100.0
    log(tracker, 4)
    assert desk.server.numbers() == [0, 1, 2, 3, 4]
    assert desk.said[1:] == ["the server answers again, records sent: 4"]
    assert desk.waiting() == 0


def test_a_study_recorded_before_begins_without_its_server(desk: Desk) -> None:
    desk.tracker()
    desk.server.down = True
    tracker = desk.tracker(n_trials=9)
    log(tracker, 0)
    assert desk.waiting() == 1
    assert len(desk.said) == 1
    desk.server.down, desk.time = False, 100.0
    log(tracker, 1)
    assert desk.server.calls[1:] == [("open", "s", {"n_trials": 9}), 0, 1]


def test_a_new_place_has_to_be_reached_and_gets_what_waits(desk: Desk) -> None:
    tracker = desk.tracker()
    desk.server.down = True
    log(tracker, 0)
    with pytest.raises(UserError, match="a remedy"):
        desk.tracker(place="there")
    desk.server.down = False
    log(desk.tracker(place="there"), 0)  # nothing is known to be recorded there
    assert desk.server.numbers() == [0]


def test_tries_are_spaced_and_counted_so_that_time_outs_do_not_slow_the_training(
    desk: Desk,
) -> None:
    tracker = desk.tracker()
    desk.server.down = True

    numbers = itertools.count()

    def tries(until: float, seconds: float) -> list[float]:
        found = []
        while desk.time < until:
            before = desk.server.tries
            log(tracker, next(numbers))
            found += [desk.time] * (desk.server.tries - before)
            desk.time += seconds
        return found

    at = tries(250.0, 1.0)
    assert [second - first for first, second in itertools.pairwise(at)][:8] == [
        1,
        2,
        4,
        8,
        16,
        32,
        60,
        60,
    ]
    desk.time, spent = 1000.0, tracker.seconds

    def time_out() -> None:
        desk.time += 30.0

    desk.server.on_failure = time_out
    at = tries(2500.0, 20.0)
    assert tracker.seconds - spent == 30.0 * len(at)
    assert len(at) in (2, 3)


def test_killed_between_sending_and_deleting_a_record_arrives_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = desk.tracker()

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(tracker._spool, "remove", die)
        with pytest.raises(KilledError):
            log(tracker, 0)
    again = desk.tracker()
    log(again, 0)
    log(again, 1)
    assert desk.server.numbers() == [0, 1]
    assert desk.waiting() == 0


def test_a_trial_that_was_taken_is_not_taken_again(desk: Desk) -> None:
    log(desk.tracker(), 0)
    log(desk.tracker(), 0)
    desk.server.down = True
    log(desk.tracker(), 0)
    assert desk.waiting() == 0


def test_the_end_says_what_waits_and_the_next_command_sends_it(desk: Desk, tmp_path: Path) -> None:
    kept, gone = tmp_path / "front.csv", tmp_path / "gone.csv"
    kept.touch()
    tracker = desk.tracker()
    desk.server.down = True
    log(tracker, 0)
    tracker.close_study(StudyResults({"front": 1.0}, [kept, gone]))
    assert "records that wait in" in desk.said[-1]
    assert "2; the same command sends them" in desk.said[-1]
    later = Spooled(desk.server, desk.folder, "here", say=desk.said.append)
    later.send_waiting()
    assert desk.waiting() == 2
    desk.server.down = False
    later.send_waiting()
    assert desk.server.calls[1:] == [
        ("open", "s", {"n_trials": 3}),
        0,
        ("close", {"front": 1.0}, [kept], "finished"),
    ]
    assert any(f"gone and left out: {gone}" in line for line in desk.said)
    before = desk.server.tries
    later.send_waiting()
    assert desk.server.tries == before


def test_a_closed_study_that_goes_on_is_opened_again_first(desk: Desk) -> None:
    tracker = desk.tracker()
    desk.server.down = True
    log(tracker, 0)
    tracker.close_study(StudyResults(), "interrupted")
    desk.server.down = False
    log(desk.tracker(), 1)
    kinds = [call if isinstance(call, int) else call[0] for call in desk.server.calls]
    assert kinds == ["open", "open", 0, "close", "open", 1]


@pytest.mark.parametrize("end", ["failed", "interrupted"])
def test_an_end_that_was_not_wanted_neither_raises_nor_waits(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, end: Any
) -> None:
    tracker = desk.tracker()
    desk.server.down = True
    log(tracker, 0)
    tries = desk.server.tries
    tracker.close_study(StudyResults(), end)
    assert desk.server.tries == tries  # the pause is kept
    assert desk.waiting() == 2

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orchestrator.tracking.spool.write_atomic", full)
    tracker.close_study(StudyResults(), end)
    assert "the end of the study is not recorded" in desk.said[-1]
    monkeypatch.setattr(desk.server, "close_study", None)
    tracker.close_study(StudyResults(), end)


def test_after_an_interruption_sending_has_little_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = desk.tracker()
    desk.server.down = True
    for number in range(20):
        log(tracker, number)
    desk.server.down, desk.time = False, 1000.0
    slow = desk.server.trial

    def trial(record: TrialRecord) -> None:
        desk.time += 2.0
        slow(record)

    monkeypatch.setattr(desk.server, "trial", trial)
    tracker.close_study(StudyResults(), "interrupted")
    assert desk.server.numbers() == [0, 1, 2]
    assert desk.waiting() == 18


def test_a_record_that_is_refused_does_not_block_those_behind_it(desk: Desk) -> None:
    tracker = desk.tracker()
    desk.server.refuses.add(1)
    for number in range(3):
        log(tracker, number)
    assert desk.server.numbers() == [0, 2]
    assert desk.server.opened() == 2  # refused for good only by a study that was opened just now
    assert desk.waiting() == 0
    (kept,) = (desk.folder / "refused").iterdir()
    assert f"kept as '{kept}'; invalid value" in desk.said[0]


def test_a_damaged_record_does_not_block_those_behind_it(desk: Desk) -> None:
    tracker = desk.tracker()
    desk.server.down = True
    log(tracker, 0)
    log(tracker, 1)
    next(desk.folder.glob("[0-9]*.json")).write_text("{")
    desk.server.down = False
    tracker.close_study(StudyResults())
    assert len(desk.server.numbers()) == 1
    assert len(list((desk.folder / "refused").iterdir())) == 1


def test_no_secret_is_on_disk(desk: Desk) -> None:
    url = "postgresql://me:pa55word@host/db"
    place = {"uri": "http://me:pa55word@host", "token": "pa55word"}
    tracker = Spooled(desk.server, desk.folder, place, say=desk.said.append)
    tracker.open_study(
        "s", {"uri": url}, {"study": {"storage": url}, "data": {"api_key": "pa55word"}}
    )
    desk.server.down = True
    log(
        tracker,
        0,
        params={"p": url},
        tags={"reason": f"{url} broke"},
        artifacts={"traceback.txt": f"at {url}"},
    )
    tracker.close_study(StudyResults())
    written = [path.read_text() for path in desk.folder.iterdir()]
    assert len(written) == 3
    assert "me:***@host" in "".join(written)
    assert "pa55word" not in "".join([*written, *desk.said])


def test_records_of_another_study_of_this_name_are_not_mixed(desk: Desk) -> None:
    tracker = desk.tracker(study_id="1")
    desk.server.down = True
    log(tracker, 0)
    with pytest.raises(UserError, match=r"1 of an earlier study 's' wait in .*delete that folder"):
        desk.tracker(study_id="2")
    desk.server.down = False
    log(desk.tracker(study_id="2"), 1)
    kinds = [call if isinstance(call, int) else call[0] for call in desk.server.calls]
    assert kinds == ["open", "open", 0, "open", 1]


def test_a_full_disk_is_an_error_and_what_was_there_stays_whole(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = desk.tracker()
    desk.server.down = True
    log(tracker, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(
            UserError, match=r"cannot be used \(No space left on device\); make room there"
        ):
            log(tracker, 1)
    assert desk.waiting() == 1
    assert all(json.loads(path.read_text()) for path in desk.folder.iterdir())
    desk.server.down = False
    log(desk.tracker(), 1)
    assert desk.server.numbers() == [0, 1]


def test_what_keeps_nothing_is_not_spooled(tmp_path: Path) -> None:
    tracker = spooled(NoTracker(), tmp_path / "spool", {})
    assert isinstance(tracker, NoTracker)
    assert not list(tmp_path.iterdir())
