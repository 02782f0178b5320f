"""How an MLflow server or database is reached, and how soon it is given up."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning_modules.errors import UserError
from orchestrator.files import require_writable
from orchestrator.redact import redact
from orchestrator.tracking import TrackerError
from orchestrator.tracking.database import make_whole

_SQLITE = "sqlite:///"
_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Ports by the name of a database."""
_REACH_SECONDS = 5.0
"""Seconds in which an address must be reached."""
_SERVERS = {"http": 80, "https": 443}
"""Ports by the scheme of a server."""
_OPENING_SECONDS = 10
"""Seconds of each request before the study is known to the server.

They are few because a wrong uri should be known soon.
"""
_SECONDS = 30
"""Seconds of each request afterwards: a server may be slow, but alive."""
_ONE_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}
"""Environment in which MLflow tries each request once.

Its own settings retry a dead address for minutes. They would also repeat a request of which only
the reply was lost: a run would then be created twice.
"""
_SILENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """(client, experiment id); creates the schema and the experiment where they are missing."""
    with _requests(_OPENING_SECONDS), quiet_migrations():
        return _connect(uri, experiment)


@contextmanager
def exchange(uri: str) -> Iterator[None]:
    """Around requests that belong together.

    Errors: TrackerError, within seconds, for everything that prevents an answer.
    """
    with answering(uri), _requests(_SECONDS):
        _reach(uri)
        yield


def _connect(uri: str, experiment: str) -> tuple[Any, str]:
    location = _checked(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=_absolute(uri))
    existing = client.get_experiment_by_name(experiment)
    if existing is None:
        try:
            return client, client.create_experiment(experiment, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # another worker was faster
            existing = client.get_experiment_by_name(experiment)
    if existing.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment '{experiment}' was deleted; restore it with "
            f"`mlflow experiments restore -x {existing.experiment_id}` or choose another "
            "tracking.experiment"
        )
    return client, existing.experiment_id


def require_database(uri: str) -> None:
    """Errors: TrackerError for a database in a file that is not there; a server may be."""
    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    if uri.startswith(_SQLITE) and not path.is_file():
        reason = f"MLflow's database {path} is not in this folder"
        raise TrackerError(f"{reason}; run this where the studies were run", reason=reason)


def _absolute(uri: str) -> str:
    """The uri with an absolute path to its file.

    MLflow keeps one store per URI and process: a relative file would stay where the first study was
    run.
    """
    if not uri.startswith(_SQLITE):
        return uri
    path, question, query = uri.removeprefix(_SQLITE).partition("?")
    return f"{_SQLITE}{Path(path).resolve()}{question}{query}"


def _checked(uri: str) -> str | None:
    """Where artifacts go; None for the server's own place.

    Errors: UserError where MLflow would try in vain for minutes.
    """
    parts = urlsplit(uri)
    dialect = parts.scheme.partition("+")[0]
    if uri.startswith(_SQLITE):
        database = Path(uri.removeprefix(_SQLITE).partition("?")[0])
        folder = require_writable(database.parent)
        make_whole(database)
        return (folder / "mlartifacts").resolve().as_uri()
    if dialect not in ("databricks", *_SERVERS, *_DATABASES):
        raise UserError(
            f"tracking.uri must be a database or a server; got '{redact(uri)}'; "
            "use sqlite:///mlflow.db, postgresql://..., or http(s)://..."
        )
    _reach(uri)
    return None


def _reach(uri: str) -> None:
    """Connects once, as requests to a silent address take far longer to fail.

    Errors: OSError within seconds where nobody listens.
    """
    from requests.utils import get_environ_proxies

    parts = urlsplit(uri)
    try:
        port = parts.port or {**_DATABASES, **_SERVERS}.get(parts.scheme.partition("+")[0])
    except ValueError:
        raise UserError(
            f"the port in tracking.uri must be a number up to 65535; got '{redact(uri)}'"
        ) from None
    if not parts.hostname or not port:
        return
    by_proxy = parts.scheme in _SERVERS and get_environ_proxies(uri)
    if not by_proxy:
        socket.create_connection((parts.hostname, port), _REACH_SECONDS).close()


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Around calls of MLflow.

    Errors of the server, the database or the network are for the user to mend. They may hold the
    password, so they are redacted.
    Errors: TrackerError.
    """
    # Counts of use would go to a third party, from a thread, on machines without network too. This
    # must be set before the first import.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError) as error:
        lines = redact(str(error)).strip().splitlines() or [type(error).__name__]
        reason = lines[0][:400]
        raise TrackerError(
            f"MLflow at '{redact(uri)}' must answer; it says: {reason}; "
            "mend tracking.uri or the server and give the same command again (or tracking=none)",
            reason=f"MLflow at '{redact(uri)}' says: {reason}",
            refused=isinstance(error, MlflowException) and error.error_code in _REFUSALS,
        ) from None


@contextmanager
def _requests(seconds: int) -> Iterator[None]:
    """Sets MLflow's environment, which it reads at each request."""
    values = {**_ONE_TRY, **_SILENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def quiet_migrations() -> Iterator[None]:
    """Silences the page of migration steps that a new database logs.

    It also silences warnings about tries that we report.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
