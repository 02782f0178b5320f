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

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two attempts to reach it: doubled from the first to the longest."""


def database(url: str, patience: float) -> BaseStorage:
    """Optuna's storage at `url`; every call is repeated for `patience` seconds while there is no
    answer.

    Errors: ConfigError, at once, for a database that cannot be opened.
    """
    if url.count("@") > 1:  # a driver would look up, and show, what follows the first one
        raise _unreadable(url)
    try:
        opened = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            f"study.storage needs a driver for '{redact(url)}': {error}; "
            "for PostgreSQL pip install 'pruning-orchestrator[postgresql]'"
        ) from None
    except (ArgumentError, ValueError):  # their text has pieces of the address
        raise _unreadable(url) from None
    except (DBAPIError, StorageInternalError, RuntimeError) as error:
        raise ConfigError(
            f"study.storage must be a database that answers; '{redact(url)}' says: "
            f"{_reason(error)}; "
            "mend the address or start the server, and give the same command again"
        ) from None
    weakref.finalize(
        opened, opened.engine.dispose
    )  # connections are closed with the storage, not left to their server
    if opened.engine.dialect.name == "sqlite":
        _lock_first(opened.engine)
    patient: BaseStorage = PatientStorage(get_storage(opened), url, patience)
    return patient


def _lock_first(engine: Engine) -> None:
    """Transactions of SQLite that take the lock when they begin.

    It knows no SELECT ... FOR UPDATE, by which Optuna gives a trial to one of several who ask for
    it.
    """

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # those opened before


def _unreadable(url: str) -> ConfigError:
    return ConfigError(
        f"study.storage must be a database that answers; '{redact(url)}' is no address of one: "
        "driver://user:password@host:port/name; in the password percent-encode what is no letter "
        "or digit, '@' as %40"
    )


class _Patient:
    """Asks again, at growing intervals, for as long as `patience` seconds where the database does
    not answer.
    """

    def __init__(
        self,
        inner: BaseStorage,
        url: str,
        patience: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner, self._url, self._patience, self._now, self._sleep = (
            inner,
            url,
            patience,
            now,
            sleep,
        )
        self._left = patience

    def _asked(self, name: str, *arguments: Any, **named: Any) -> Any:
        begin, pause, again = self._now(), FIRST_PAUSE, False
        while True:
            try:
                answer = getattr(self._inner, name)(*arguments, **named)
                self._left = self._patience
                return answer
            except UpdateFinishedTrialError:
                # the answer to the first attempt was lost: it had been done
                if again and name == "set_trial_state_values" and self._is_so(*arguments, **named):
                    return True
                raise
            except (StorageInternalError, DBAPIError) as error:
                if self._now() + pause - begin > self._left:
                    # what a run that ends for this still tries to put away waits no second time
                    self._left = 0.0
                    raise StorageError(
                        f"study.storage must answer; '{redact(self._url)}' has not for "
                        f"{self._patience:g} s "
                        f"(study.storage_patience): {_reason(error)}; what was finished is kept, "
                        "give the same command "
                        "again when it is back"
                    ) from None
                self._sleep(pause)
                pause, again = min(2 * pause, LONGEST_PAUSE), True

    def _is_so(self, trial_id: int, state: object, *rest: Any, **named: Any) -> bool:
        return bool(self._inner.get_trial(trial_id).state == state)


def _patiently(name: str) -> Any:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self._asked(name, *arguments, **named)

    call.__name__ = name
    return call


_CALLS = [
    name
    for name, value in vars(BaseStorage).items()
    if callable(value) and not name.startswith("_")
]
PatientStorage: Any = type(
    "PatientStorage", (_Patient, BaseStorage), {name: _patiently(name) for name in _CALLS}
)
"""A storage around another: every call of Optuna's interface, repeated while the database does not
answer.
"""


def _reason(error: Exception) -> str:
    """The first line of what the database itself says."""
    cause: BaseException = error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    lines = [line.strip() for line in redact(str(cause)).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(cause).__name__
