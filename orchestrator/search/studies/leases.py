"""Who works on what: leases on running trials, and one on the study itself.

A lease is renewed for as long as its holder lives. It is judged by whether it changes, on the
judge's own clock: clocks of machines may differ. It names its holder's machine and process, so that
on the same machine a killed holder is seen at once.
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
"""The study's attribute with the lease of the process that leads it.

The leader decides how many trials there are and confirms the front.
"""
BEATS = 6
"""Signs of life within the time after which a silent holder is taken for dead."""
UNSIGNED_SECONDS = 2.0
"""Seconds to wait for a running trial's first lease.

If none comes, its process died before it wrote one.
"""
SETTLE_SECONDS = 0.2
"""Seconds that a process waits after claiming a study.

Two that claim it at the same moment both write, wait, and read who wrote last (Fischer's
algorithm).
"""

Lease = Mapping[str, Any]


class LeaseLostError(Exception):
    """Another process works on this trial now; this process's result is no longer wanted."""


def process_identity() -> dict[str, Any]:
    """This process, as others on the same machine can look it up."""
    return {
        "host": platform.node(),
        "place": _place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


class Leases:
    """The leases of one process on one study.

    `patience` is the seconds of silence after which a holder is taken for dead.
    """

    def __init__(
        self, study: Study, patience: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.study = study
        self.patience = patience
        self.now = now
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
        """Holds the lease of a trial that this process has begun.

        `identity` is the trial's name in the storage. Errors: LeaseLostError where it came too
        late.
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

        Where another process holds it, `tell` hears of that. After `patience` seconds without a
        sign of life of the other process, this one takes its place. Errors: ConfigError where the
        other process lives.
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
        """Checks that a trial held by this process is still its own.

        Errors: LeaseLostError where it has been taken over; any error with which a renewal failed.
        """
        if self._error is not None:
            raise self._error
        stored = stored_trial(self.study, self._ids[number])
        if stored.state != TrialState.RUNNING or owner_of(stored) != self.owner:
            raise _lost(number, stored)

    def require_lead(self) -> None:
        """Checks that this process still leads the study.

        Errors: ConfigError where it was silent for so long that another one leads; any error with
        which a renewal failed.
        """
        if self._error is not None:
            raise self._error
        lease = self.study.user_attrs.get(LEADER)
        if _owner(lease) != self.owner:
            raise _taken(self.study, lease)

    def abandoned(self, trial: FrozenTrial) -> bool:
        """Whether nobody works on this running trial any more, as far as this process can see."""
        lease = trial.user_attrs.get(LEASE)
        patience = self.patience if lease else UNSIGNED_SECONDS
        return self._silent(f"trial {trial.number}", lease, patience)

    def led(self) -> bool:
        """Whether a process leads the study, as far as this process can see."""
        lease = self.study.user_attrs.get(LEADER)
        return lease is not None and not self._silent(LEADER, lease, self.patience)

    def _silent(self, name: str, lease: Lease | None, patience: float) -> bool:
        if lease and lease["place"] == _place() and _started(lease["pid"]) != lease["started"]:
            return True
        now = self.now()
        sign, at, silent = self._seen.get(name, (None, 0.0, 0.0))
        if name not in self._seen or sign != _sign(lease):
            self._seen[name] = (_sign(lease), now, 0.0)
            return False
        # a judge that was itself stopped, or without its database, has not seen that nobody wrote
        silent += min(now - at, patience / 2)
        self._seen[name] = (sign, now, silent)
        return silent > patience

    def _wait_for_leader(self, tell: Callable[[str], None]) -> None:
        """Waits until the leader is known to be gone, or seen to be alive.

        Errors: ConfigError where it is alive.
        """
        first = self.study.user_attrs.get(LEADER)
        announced = False
        while True:
            lease = self.study.user_attrs.get(LEADER)
            if not lease or self._silent(LEADER, lease, self.patience):
                return
            if lease["place"] == _place() or _sign(lease) != _sign(first):
                raise _taken(self.study, lease)
            if not announced:
                tell(
                    f"was searched by {words(lease)}; is it still? it has {self.patience:g} s to "
                    "say so"
                )
                announced = True
            time.sleep(min(1.0, self.patience / BEATS))

    def _release_leader(self) -> None:
        if _owner(self.study.user_attrs.get(LEADER)) == self.owner:
            self.study.set_user_attr(LEADER, None)

    @contextmanager
    def _holding(self, name: str, renew: Callable[[], None]) -> Iterator[None]:
        """Calls `renew` now and then while inside the `with` block."""
        with self._lock:
            self._held[name] = renew
            if len(self._held) == 1:
                arguments = (self._wake,)
                thread = threading.Thread(
                    target=self._renew, args=arguments, name="leases", daemon=True
                )
                thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._held[name]
                if not self._held:
                    self._wake.set()
                    self._wake = threading.Event()

    def _renew(self, over: threading.Event) -> None:
        """Renews all leases until `over`; in a thread, because training blocks for minutes."""
        while not over.wait(self.patience / BEATS):
            for name in list(self._held):
                try:
                    with self._lock:
                        # releasing a lease takes the lock, so nothing is signed after the release
                        renew = self._held.get(name)
                        if renew is not None:
                            renew()
                except UpdateFinishedTrialError:
                    # the trial ended a moment ago
                    continue
                except BaseException as error:
                    self._error = error
                    return

    def _signed(self) -> dict[str, Any]:
        self._beat += 1
        return {**process_identity(), "owner": self.owner, "beat": self._beat}


def words(lease: Lease | None) -> str:
    """The holder of a lease, for people."""
    if not lease:
        return "another process"
    return f"process {lease['pid']} on {lease['host']}"


def owner_of(trial: FrozenTrial) -> str | None:
    """The id of the process that works on a trial; None where nobody has signed it."""
    return _owner(trial.user_attrs.get(LEASE))


def _owner(lease: Lease | None) -> str | None:
    return lease["owner"] if lease else None


def _sign(lease: Lease | None) -> tuple[str, int] | None:
    """The part of a lease that changes for as long as its holder lives."""
    return (lease["owner"], lease["beat"]) if lease else None


def _lost(number: int, trial: FrozenTrial) -> LeaseLostError:
    return LeaseLostError(f"trial {number} was taken over by {words(trial.user_attrs.get(LEASE))}")


def _taken(study: Study, lease: Lease | None) -> ConfigError:
    return ConfigError(
        f"study '{study.study_name}' is being searched by {words(lease)}; a second search would "
        "share its trials: to help it, give the same command with job=work; to begin another, "
        "give study.name another value"
    )


def _place() -> str:
    """Names this start of this machine and this container.

    It is the same for processes that can look one another up.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str:
    """When a process began; empty where there is no such process.

    Thus a later process with the same number is not taken for it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            # it was killed, and its parent has not looked yet
            return ""
        return fields[19]
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
