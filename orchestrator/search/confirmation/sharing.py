"""Confirmation that the processes of a study share.

The leader writes into the study what is to be confirmed. Each process that helps takes one model
or ladder after another, under a lock on a file, and marks it as settled. Afterwards the leader
reads all results where it would have written them itself.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.files import write_atomic
from orchestrator.results.rows import ConfirmedRow, TrialRow
from orchestrator.search.confirmation.beside import Matches, climbed, matches_of
from orchestrator.search.confirmation.final import Confirmation, confirm_dense, confirm_trial
from orchestrator.search.confirmation.ladders import Name
from orchestrator.search.studies.trial import Study
from orchestrator.search.trials.methods import PreparedMethod
from orchestrator.stored import read_cache

SHARED = "confirming"
"""Attribute of the study: what its processes confirm now; None where they confirm nothing."""
HELPED = "helped"
"""Attribute of the study: whether a process beside the leader has ever helped with it."""
SETTLED_SECONDS = 0.2
"""Seconds between two looks at what is settled."""


@dataclass(frozen=True)
class Shared:
    """What is to be confirmed: models of `trials`, the dense model, and ladders by their names.

    `matches` say which models the ladders have, None where there are none. `call` tells this one
    from those of earlier runs.
    """

    call: str
    trials: tuple[int, ...] = ()
    dense: bool = False
    ladders: tuple[Name, ...] = ()
    matches: Matches | None = None

    @property
    def names(self) -> list[str]:
        """In the order in which they are begun; the longest ones first."""
        dense = ["dense"] if self.dense else []
        trials = [f"trial-{number}" for number in self.trials]
        return [*dense, *trials, *[f"baseline {name}" for name in self.ladders]]


@dataclass(frozen=True)
class SharedConfirmation:
    """The leader's side: it waits until the processes of the study have confirmed all.

    `work` is what the leader does meanwhile; it is called again and again. Failures are noted in
    the confirmation, as if they had happened in the leader.
    """

    study: Study
    confirmation: Confirmation
    work: Callable[[], object]

    def models(self, rows: Sequence[TrialRow]) -> None:
        """The models of these trials, and the dense one."""
        trials = tuple([row.number for row in rows])
        self.share(Shared(uuid.uuid4().hex, trials, dense=True))

    def ladders(self, front: Sequence[ConfirmedRow]) -> None:
        """The baselines that the settings ask for, matched to the front."""
        ladders = self.confirmation.final.lab.phases.confirm.baselines
        matches = matches_of(self.confirmation, front)
        self.share(Shared(uuid.uuid4().hex, ladders=ladders, matches=matches))

    def share(self, shared: Shared) -> None:
        """Offer this to the study's processes, and wait until all of it is settled."""
        left = shared.names
        if not left:
            return
        self.study.set_user_attr(SHARED, asdict(shared))
        words = f"{len(left)} models or ladders, shared by the processes of the study"
        self.confirmation.progress.phase("confirm", words)
        try:
            with self.confirmation.progress.timed("workers"):
                self._wait(shared.call, left)
        finally:
            self.study.set_user_attr(SHARED, None)

    def _wait(self, call: str, names: Sequence[str]) -> None:
        """Returns when all of them are settled."""
        left = names
        while left:
            self.work()
            left = [name for name in left if not self._settled(call, name)]
            time.sleep(SETTLED_SECONDS)

    def _settled(self, call: str, name: str) -> bool:
        settled = _Mark(self.confirmation, name).settled(call)
        if settled is not None:
            _tell(self.confirmation, name, settled)
        return settled is not None


def _tell(confirmation: Confirmation, name: str, settled: Mapping[str, Any]) -> None:
    """Say how it ended; a failure was said where it happened."""
    failed = settled["failed"]
    if failed is None:
        confirmation.progress.tick(f"{name} is confirmed")
    elif name not in confirmation.failed:
        confirmation.failed[name] = failed
        confirmation.progress.phase(name, f"left out, it failed: {failed}")


def take_part(study: Study, confirmation: Confirmation, method: PreparedMethod) -> bool:
    """Confirm one of what the study's processes share; False where nothing is left to take."""
    content = study.user_attrs.get(SHARED)
    if content is None:
        return False
    shared = _shared(content)
    for name, make in _tasks(shared, confirmation, method).items():
        if _Mark(confirmation, name).taken(shared.call, make):
            return True
    return False


def _shared(content: Mapping[str, Any]) -> Shared:
    matches = content["matches"]
    return Shared(
        content["call"],
        tuple(content["trials"]),
        content["dense"],
        tuple(content["ladders"]),
        None if matches is None else Matches(tuple(matches["trials"]), tuple(matches["confirmed"])),
    )


def _tasks(
    shared: Shared, confirmation: Confirmation, method: PreparedMethod
) -> dict[str, Callable[[], object]]:
    """What to call for each of the names."""
    calls: list[Callable[[], object]] = []
    if shared.dense:
        calls.append(partial(confirm_dense, confirmation))
    for number in shared.trials:
        calls.append(partial(confirm_trial, confirmation, number))
    if shared.matches is not None:
        for ladder in shared.ladders:
            calls.append(partial(climbed, confirmation, method, ladder, shared.matches))
    return dict(zip(shared.names, calls, strict=True))


class _Mark:
    """The files that say who confirms a model or ladder, and that it is settled."""

    def __init__(self, confirmation: Confirmation, name: str) -> None:
        self._confirmation = confirmation
        self._name = name
        self._path = confirmation.records / "shared" / f"{name.replace(' ', '-')}.json"

    def settled(self, call: str) -> Mapping[str, Any] | None:
        """How it ended; None where it is still open."""
        mark = read_cache(self._path, dict)
        return mark if mark is not None and mark["call"] == call else None

    def taken(self, call: str, make: Callable[[], object]) -> bool:
        """Whether it was open and nobody was at it, so that this process has settled it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self.settled(call) is not None:
            return False
        # the system frees the lock of a process that dies
        lock = FileLock(self._path.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        with lock:
            if self.settled(call) is not None:
                return False
            self._make(call, make)
        return True

    def _make(self, call: str, make: Callable[[], object]) -> None:
        failed = self._confirmation.failed
        # this process may have met it in an earlier call
        failed.pop(self._name, None)
        with self._confirmation.left_out(self._name):
            make()
        mark = {"call": call, "failed": failed.get(self._name)}
        write_atomic(self._path, json.dumps(mark))
