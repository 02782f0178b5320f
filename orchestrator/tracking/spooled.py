"""A tracker that may be out of reach.

Records are written to disk first, and sent from there in order.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lightning_modules.errors import UserError
from orchestrator.redact import redact
from orchestrator.tracking import (
    Finalist,
    ModelRecord,
    Point,
    StudyEnd,
    StudyResults,
    Tracker,
    TrackerError,
    TrialRecord,
)
from orchestrator.tracking.none import NoTracker
from orchestrator.tracking.spool import Spool, plain

_FIRST_PAUSE = 1.0
"""Seconds until the next try after the first that failed; the pause then doubles."""
_LONGEST_PAUSE = 60.0
"""Longest pause between two tries, in seconds."""
_REST = 20.0
"""A failed try is followed by a pause of at least this many times its length.

So a silent server costs at most 5 % of the time.
"""
_FAREWELL = 5.0
"""Seconds of sending after Ctrl-C or an error."""


def _say(line: str) -> None:
    print(f"tracking: {line}", file=sys.stderr, flush=True)


def spooled(tracker: Tracker, folder: Path, place: object) -> Tracker:
    """`tracker` made to outlast its server; as it is where it keeps nothing anyway."""
    if isinstance(tracker, NoTracker):
        return tracker
    return Spooled(tracker, folder, place)


class Spooled:
    """A `Tracker` before another one, `inner`, that need not answer all the time.

    It has to answer once for this study. `place` says where `inner` records, as plain data: at a
    new place the study has to be opened before anything is spooled for it. `now` is in seconds on a
    monotonic scale.
    """

    def __init__(
        self,
        inner: Tracker,
        folder: Path,
        place: object = None,
        *,
        say: Callable[[str], None] = _say,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds = 0.0
        self._inner = inner
        self._spool = Spool(folder)
        self._place = plain(place)
        self._say = say
        self._now = now
        self._opened = False
        self._lost = False
        self._pause = 0.0
        self._next_try = -math.inf

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        with self._spending():
            asked = plain({"name": name, "tags": tags, "params": params})
            before = self._spool.study
            if before and _identity(before) != _identity(asked):
                self._send_all_of(before)
                before = {}
            known = before.get("place") == self._place and bool(before)
            if not known:
                self._inner.open_study(**asked)
                self._opened = True
            trials = before["trials"] if known else []
            self._spool.remember({**asked, "place": self._place, "trials": trials})
            self._send(opening=True)

    def trial(self, record: TrialRecord) -> None:
        with self._spending():
            study = self._spool.study
            if record.number in study["trials"]:
                return
            at = time.time() if record.at is None else record.at
            self._spool.add({"trial": _plain(replace(record, at=at))})
            self._spool.remember({**study, "trials": [*study["trials"], record.number]})
            if self._now() >= self._next_try:
                self._send()

    def close_study(
        self, results: StudyResults, end: StudyEnd = "finished", at: float | None = None
    ) -> None:
        """Record the end of a study.

        Only the end of a finished study raises: after Ctrl-C or an error, that one is to be
        reported.
        """
        with self._spending():
            record = {
                **_plain_results(results),
                "end": end,
                "at": time.time() if at is None else at,
            }
            if end == "finished":
                self._spool.add({"close": record})
                self._spool.remember({**self._spool.study, "ended": _ended_with(results)})
                self.send_waiting()
                return
            try:
                self._spool.add({"close": record})
                if self._now() >= self._next_try:
                    self._send(_FAREWELL)
                self._say_what_waits()
            except Exception as error:
                self._tell(f"the end of the study is not recorded: {error}")

    def require_end(self, results: StudyResults) -> None:
        """Record the end of a finished study that was opened here, where that was not done yet.

        It is recorded again where other finalists are to be registered. Records that wait are sent.
        """
        study = self._spool.study
        recorded = study.get("ended") == _ended_with(results)
        if study and not recorded and not self._end_waits():
            self.close_study(results)
        else:
            self.send_waiting()

    def _end_waits(self) -> bool:
        """Whether the end of the study is among the records that wait."""
        return any(map(self._closes, self._spool.waiting()))

    def _closes(self, path: Path) -> bool:
        try:
            return bool(self._spool.read(path).get("close", {}).get("end") == "finished")
        except ValueError:
            return False

    def send_waiting(self) -> None:
        """Send the records that wait, now, and say which still do."""
        if self._spool.waiting():
            self._send()
            self._say_what_waits()

    def _send_all_of(self, study: Mapping[str, Any]) -> None:
        """Send all records of an earlier study of this name.

        Errors: UserError where they cannot be sent: two studies are not to be mixed.
        """
        if self._spool.waiting():
            self._send()
        waiting = self._spool.waiting()
        if waiting:
            raise UserError(
                f"records of one study at a time wait to be sent; {len(waiting)} of an earlier "
                f"study '{study['name']}' wait in '{self._spool.folder}'; mend the tracking "
                "server, or delete that folder, and give the same command again"
            )
        self._opened = False

    def _send(self, seconds: float = math.inf, *, opening: bool = False) -> None:
        """Send in order, until nothing waits, the time is up or the server fails.

        With `opening` the study is opened also where nothing waits.
        """
        begun = trying = self._now()
        sent = 0
        try:
            for path in self._spool.waiting():
                trying = self._now()
                if trying - begun >= seconds:
                    break
                sent += self._send_one(path)
            trying = self._now()
            if opening:
                self._open()
        except TrackerError as error:
            self._lose(error.reason, trying)
        except UserError as error:
            self._lose(str(error), trying)
        else:
            if self._lost or sent > 1:
                self._tell(f"the server answers again, records sent: {sent}")
            self._lost = False
            self._pause = 0.0
            self._next_try = -math.inf

    def _send_one(self, path: Path) -> int:
        """Send one record; return how many arrived.

        None arrives where it was refused by a server that had just taken the study.
        """
        fresh = self._open()
        try:
            record = self._spool.read(path)
        except ValueError:
            self._tell(
                "a record was damaged and is left out, it is kept as "
                f"'{self._spool.set_aside(path)}'"
            )
            return 0
        try:
            self._deliver(record)
        except TrackerError as error:
            if not error.refused:
                raise
            if not fresh:
                self._opened = False
                return self._send_one(path)
            kept = self._spool.set_aside(path)
            self._tell(f"a record is refused and left out, it is kept as '{kept}'; {error.reason}")
            return 0
        self._spool.remove(path)
        return 1

    def _open(self) -> bool:
        """Open the study, unless it is open; return whether it had to be opened."""
        if self._opened:
            return False
        study = self._spool.study
        self._inner.open_study(study["name"], study["tags"], study["params"])
        self._opened = True
        return True

    def _deliver(self, record: dict[str, Any]) -> None:
        trial = record.get("trial")
        if trial:
            points = [Point(*point) for point in trial["curves"]]
            self._inner.trial(TrialRecord(**{**trial, "curves": points}))
            return
        close = record["close"]
        present = []
        gone = []
        for path in map(Path, close["artifacts"]):
            if path.is_file():
                present.append(path)
            else:
                gone.append(str(path))
        if gone:
            self._tell(f"files of the study's record are gone and left out: {', '.join(gone)}")
        results = replace(_results(close), artifacts=present)
        self._inner.close_study(results, close["end"], close["at"])
        # records that follow belong to a study that goes on
        self._opened = False

    def _lose(self, reason: str, begun: float) -> None:
        now = self._now()
        self._pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
        self._next_try = now + max(self._pause, _REST * (now - begun))
        self._opened = False
        if not self._lost:
            where = self._spool.folder
            self._tell(
                f"{reason}; the study goes on, its records wait in '{where}' and are sent later"
            )
        self._lost = True

    def _say_what_waits(self) -> None:
        waiting = len(self._spool.waiting())
        if waiting:
            self._tell(
                f"records that wait in '{self._spool.folder}': {waiting}; the same command sends "
                "them"
            )

    def _tell(self, line: str) -> None:
        self._say(redact(line))

    @contextmanager
    def _spending(self) -> Iterator[None]:
        begun = self._now()
        try:
            yield
        finally:
            self.seconds += self._now() - begun


def _identity(study: Mapping[str, Any]) -> tuple[str, str | None]:
    return study["name"], study["tags"].get("study_id")


def _plain(record: TrialRecord) -> dict[str, Any]:
    """The record as it is stored; numbers of any kind become Python's."""
    points = [(point.name, int(point.step), float(point.value)) for point in record.curves]
    return {**vars(record), "metrics": _floats(record.metrics), "curves": points}


def _plain_results(results: StudyResults) -> dict[str, Any]:
    models = [{**vars(model), "metrics": _floats(model.metrics)} for model in results.models]
    return {
        **vars(results),
        "metrics": _floats(results.metrics),
        "artifacts": [str(path) for path in results.artifacts],
        "models": models,
        "finalists": [vars(finalist) for finalist in results.finalists],
    }


def _results(close: Mapping[str, Any]) -> StudyResults:
    """The results of a record; an earlier version has written only some of them."""
    known = {entry.name: close[entry.name] for entry in fields(StudyResults) if entry.name in close}
    models = [ModelRecord(**model) for model in close.get("models", ())]
    finalists = [Finalist(**finalist) for finalist in close.get("finalists", ())]
    return StudyResults(**{**known, "models": models, "finalists": finalists})


def _ended_with(results: StudyResults) -> Any:
    """What the spool keeps of an end that was recorded."""
    return plain([vars(finalist) for finalist in results.finalists]) or True


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
