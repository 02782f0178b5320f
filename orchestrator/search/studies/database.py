"""A study in a database on a server, which may be away for a while."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from lightning_modules.errors import ConfigError, StorageError
from orchestrator.redact import redact

FIRST_PAUSE = 0.5
"""Seconds between the first two attempts to reach the database; the pause then doubles."""
LONGEST_PAUSE = 15.0
"""Longest pause between two attempts, in seconds."""


def database(url: str, patience: float) -> BaseStorage:
    """Optuna's storage at `url`.

    Every call is repeated for `patience` seconds while there is no answer.
    Errors: ConfigError, at once, for a database that cannot be opened.
    """
    if url.count("@") > 1:
        # a driver would look up, and show, the text after the first @
        raise _unreadable(url)
    try:
        opened = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            f"study.storage needs a driver for '{redact(url)}': {error}; "
            "for PostgreSQL pip install 'pruning-orchestrator[postgresql]'"
        ) from None
    except (ArgumentError, ValueError):
        # the text of these errors has pieces of the address
        raise _unreadable(url) from None
    except (DBAPIError, StorageInternalError, RuntimeError) as error:
        raise ConfigError(
            f"study.storage must be a database that answers; '{redact(url)}' says: "
            f"{_reason(error)}; "
            "mend the address or start the server, and give the same command again"
        ) from None
    # connections are closed with the storage, not left to their server
    weakref.finalize(opened, opened.engine.dispose)
    if opened.engine.dialect.name == "sqlite":
        _lock_first(opened.engine)
    patient: BaseStorage = PatientStorage(get_storage(opened), url, patience)
    return patient


def _lock_first(engine: Engine) -> None:
    """Makes SQLite's transactions take the lock when they begin.

    SQLite knows no SELECT ... FOR UPDATE, by which Optuna gives a trial to one of several processes
    that ask for it.
    """

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # connections opened before have not been set up so
    engine.dispose()


def _unreadable(url: str) -> ConfigError:
    return ConfigError(
        f"study.storage must be a database that answers; '{redact(url)}' is no address of one: "
        "driver://user:password@host:port/name; in the password percent-encode what is no letter "
        "or digit, '@' as %40"
    )


class _Patient:
    """Repeats a call while the database does not answer.

    It asks at growing intervals, for `patience` seconds.
    """

    def __init__(
        self,
        inner: BaseStorage,
        url: str,
        patience: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner = inner
        self._url = url
        self._patience = patience
        self._now = now
        self._sleep = sleep
        self._left = patience

    def _asked(self, name: str, *arguments: Any, **named: Any) -> Any:
        begin = self._now()
        pause = FIRST_PAUSE
        again = False
        while True:
            try:
                answer = getattr(self._inner, name)(*arguments, **named)
            except UpdateFinishedTrialError:
                # the first attempt may have succeeded, and only its answer was lost
                if again and name == "set_trial_state_values" and self._is_so(*arguments, **named):
                    return True
                raise
            except (StorageInternalError, DBAPIError) as error:
                if self._now() + pause - begin > self._left:
                    # the calls that a run makes while it ends for this do not wait a second time
                    self._left = 0.0
                    raise self._silent(error) from None
                self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                again = True
            else:
                self._left = self._patience
                return answer

    def _silent(self, error: Exception) -> StorageError:
        return StorageError(
            f"study.storage must answer; '{redact(self._url)}' has not for {self._patience:g} s "
            f"(study.storage_patience): {_reason(error)}; what was finished is kept, "
            "give the same command again when it is back"
        )

    def _is_so(self, trial_id: int, state: object, *rest: Any, **named: Any) -> bool:
        """Whether the trial is in this state already."""
        return bool(self._inner.get_trial(trial_id).state == state)


def _patiently(name: str) -> Any:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self._asked(name, *arguments, **named)

    call.__name__ = name
    return call


def _calls() -> list[str]:
    """Names of the calls of Optuna's storage interface."""
    names = []
    for name, value in vars(BaseStorage).items():
        if callable(value) and not name.startswith("_"):
            names.append(name)
    return names


PatientStorage: Any = type(
    "PatientStorage", (_Patient, BaseStorage), {name: _patiently(name) for name in _calls()}
)
"""A storage around another that repeats every call while the database does not answer."""


def _reason(error: Exception) -> str:
    """The first line of what the database itself says, at most 300 characters."""
    cause: BaseException = error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    for line in redact(str(cause)).splitlines():
        if line.strip():
            return line.strip()[:300]
    return type(cause).__name__
