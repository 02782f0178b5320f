"""Who works on what: a lease on each running trial, and on the study itself, renewed for as long as
its holder lives.

A lease is judged by whether it changes, on the judge's own clock: clocks of machines may differ. It
names its holder's machine and process, so that on the same machine a killed one is seen at once.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError

from lightning_modules.errors import ConfigError
from orchestrator.search.studies.optuna_inside import set_attribute, stored_trial
from orchestrator.search.studies.trial import FrozenTrial, Study, TrialState

LEASE = "lease"
LEADER = "leader"
"""The study's attribute with the lease of the process that decides how many trials there are and
confirms the front.
"""
BEATS = 6
"""Signs of life within the time after which a silent holder is taken for dead."""
UNSIGNED_SECONDS = 2.0
"""Seconds to wait for a running trial's first lease. If none comes, its process died before it
wrote one.
"""
SETTLE_SECONDS = 0.2
"""Two that claim a study at the same moment both write, wait, and read who wrote last (Fischer's
algorithm).
"""

Lease = Mapping[str, Any]


class LeaseLostError(Exception):
    """Somebody else works on this trial now; what this process has of it is not wanted any more."""


def process_identity() -> dict[str, Any]:
    """This process, as others on the same machine can look it up."""
    return {
        "host": platform.node(),
        "place": _place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


class Leases:
    """The leases of one process on one study; `patience` in seconds of silence until a holder is
    taken for dead.
    """

    def __init__(
        self, study: Study, patience: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.study, self.patience, self.now = study, patience, now
        self.owner = uuid.uuid4().hex
        self._beat = 0
        self._ids: dict[int, int] = {}
        self._held: dict[str, Callable[[], None]] = {}
        self._seen: dict[str, tuple[Any, float, float]] = {}
        self._error: BaseException | None = None
        self._wake = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def trial(self, number: int, identity: int) -> Iterator[None]:
        """Holds the lease of a trial that this process has begun; `identity` is its name in the
        storage.

        Errors: LeaseLostError where it came too late.
        """
        study = self.study
        stored = stored_trial(study, identity)
        if stored.state != TrialState.RUNNING or stored.user_attrs.get(LEASE) is not None:
            raise _lost(number, stored)
        set_attribute(study, identity, LEASE, self._signed())
        self._ids[number] = identity

        def renew() -> None:
            # a trial that was taken over is not taken back
            if owner_of(stored_trial(study, identity)) == self.owner:
                set_attribute(study, identity, LEASE, self._signed())

        with self._holding(f"trial {number}", renew):
            yield

    @contextmanager
    def leading(self, tell: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Holds the study itself.

        Errors: ConfigError where another process does; after `patience` seconds without a sign of
        life, which `tell` hears of, it is followed.
        """
        self._wait_for_leader(tell)

        def renew() -> None:
            if _owner(self.study.user_attrs.get(LEADER)) in (self.owner, None):
                self.study.set_user_attr(LEADER, self._signed())

        self.study.set_user_attr(LEADER, None)
        renew()
        try:
            with self._holding(LEADER, renew):
                time.sleep(SETTLE_SECONDS)
                self.require_lead()
                yield
        finally:
            self._release_leader()

    def require(self, number: int) -> None:
        """To be asked of a trial that was held here.

        Errors: LeaseLostError where it has been taken over; what a sign of life failed with.
        """
        if self._error is not None:
            raise self._error
        stored = stored_trial(self.study, self._ids[number])
        if stored.state != TrialState.RUNNING or owner_of(stored) != self.owner:
            raise _lost(number, stored)

    def require_lead(self) -> None:
        """Errors: ConfigError where this process was silent for so long that another one leads the
        study; as above.
        """
        if self._error is not None:
            raise self._error
        if _owner(found := self.study.user_attrs.get(LEADER)) != self.owner:
            raise _taken(self.study, found)

    def abandoned(self, trial: FrozenTrial) -> bool:
        """Whether nobody works on this running trial any more, as far as can be seen from here by
        now.
        """
        lease = trial.user_attrs.get(LEASE)
        return self._silent(
            f"trial {trial.number}", lease, self.patience if lease else UNSIGNED_SECONDS
        )

    def led(self) -> bool:
        """Whether a process leads the study, as far as can be seen from here by now."""
        lease = self.study.user_attrs.get(LEADER)
        return lease is not None and not self._silent(LEADER, lease, self.patience)

    def _silent(self, name: str, lease: Lease | None, patience: float) -> bool:
        if lease and lease["place"] == _place() and _started(lease["pid"]) != lease["started"]:
            return True
        now, (sign, at, silent) = self.now(), self._seen.get(name, (None, 0.0, 0.0))
        if name not in self._seen or sign != _sign(lease):
            self._seen[name] = _sign(lease), now, 0.0
            return False
        # a judge that was away itself, stopped or without its database, has not seen that nobody
        # wrote meanwhile
        silent += min(now - at, patience / 2)
        self._seen[name] = sign, now, silent
        return silent > patience

    def _wait_for_leader(self, tell: Callable[[str], None]) -> None:
        """Until the leader is known to be gone, or seen to be alive."""
        first, told = self.study.user_attrs.get(LEADER), False
        while (lease := self.study.user_attrs.get(LEADER)) and not self._silent(
            LEADER, lease, self.patience
        ):
            if lease["place"] == _place() or _sign(lease) != _sign(first):
                raise _taken(self.study, lease)
            if not told:
                tell(
                    f"was searched by {words(lease)}; is it still? it has {self.patience:g} s to "
                    "say so"
                )
                told = True
            time.sleep(min(1.0, self.patience / BEATS))

    def _release_leader(self) -> None:
        if _owner(self.study.user_attrs.get(LEADER)) == self.owner:
            self.study.set_user_attr(LEADER, None)

    @contextmanager
    def _holding(self, name: str, renew: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._held[name] = renew
            if len(self._held) == 1:
                threading.Thread(
                    target=self._renew, args=(self._wake,), name="leases", daemon=True
                ).start()
        try:
            yield
        finally:
            with self._lock:
                del self._held[name]
                if not self._held:
                    self._wake.set()
                    self._wake = threading.Event()

    def _renew(self, over: threading.Event) -> None:
        """In a thread of its own: training does not come back for minutes."""
        while not over.wait(self.patience / BEATS):
            for name in list(self._held):
                try:
                    with (
                        self._lock
                    ):  # whoever lets go of it waits, so that nothing is signed afterwards
                        self._held.get(name, lambda: None)()
                except UpdateFinishedTrialError:
                    continue  # it was told a moment ago
                except BaseException as error:
                    self._error = error
                    return

    def _signed(self) -> dict[str, Any]:
        self._beat += 1
        return {**process_identity(), "owner": self.owner, "beat": self._beat}


def words(lease: Lease | None) -> str:
    """The holder of a lease, for people."""
    return f"process {lease['pid']} on {lease['host']}" if lease else "another process"


def owner_of(trial: FrozenTrial) -> str | None:
    """Who works on a trial, by the name of its leases; None where nobody has signed it."""
    return _owner(trial.user_attrs.get(LEASE))


def _owner(lease: Lease | None) -> str | None:
    return lease["owner"] if lease else None


def _sign(lease: Lease | None) -> tuple[str, int] | None:
    """What changes for as long as the holder lives."""
    return (lease["owner"], lease["beat"]) if lease else None


def _lost(number: int, found: FrozenTrial) -> LeaseLostError:
    return LeaseLostError(f"trial {number} was taken over by {words(found.user_attrs.get(LEASE))}")


def _taken(study: Study, lease: Lease | None) -> ConfigError:
    return ConfigError(
        f"study '{study.study_name}' is being searched by {words(lease)}; a second search would "
        "share its trials: "
        "to help it, give the same command with job=work; to begin another, give study.name "
        "another value"
    )


def _place() -> str:
    """The same for processes that can look one another up: this start of this machine, this
    container.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str:
    """When a process began, so that a later one with its number is not taken for it; empty where
    there is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # killed, and its parent has not looked yet
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "running"
