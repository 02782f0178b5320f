"""A PostgreSQL server of the test's own, on this machine alone, with a password that can be
searched for.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

PASSWORD = "p@ss:w/rd-hunter2"
USER = "postgres"
"""Of the system and of the database: the server refuses to run as root."""


def binaries() -> Path | None:
    """Where `initdb` and `pg_ctl` are: on the path, or where Debian puts them."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[4].split(".")[0]),
    )
    return versions[-1].parent if versions else None


class Postgres:
    """Started by `start`, on the same port and data each time."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self._bin, self._folder, self._data = bin, folder, folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
            shutil.chown(secret, USER)
        self._call(
            "initdb", "-U", USER, "-A", "scram-sha-256", "--no-sync", "--pwfile", str(secret)
        )
        self.start()

    def url(self, database: str) -> str:
        """The address of a new database."""
        from sqlalchemy import create_engine, text

        address = f"postgresql+psycopg://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}"
        engine = create_engine(f"{address}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"create database {database}"))
        engine.dispose()
        return f"{address}/{database}"

    def start(self) -> None:
        options = (
            f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self._folder} -c max_connections=50"
        )
        self._call("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """At once, as when the power fails; `fast` says goodbye to its clients first."""
        self._call("pg_ctl", "-w", "-m", mode, "stop")

    def _call(self, name: str, *words: str) -> None:
        before = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        command = [*before, str(self._bin / name), "-D", str(self._data), *words]
        found = subprocess.run(
            command, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=name != "pg_ctl"
        )
        assert found.returncode == 0, (found.stderr or b"").decode() + self._log()

    def _log(self) -> str:
        path = self._folder / "log"
        return path.read_text() if path.exists() else ""


@contextmanager
def server() -> Iterator[Postgres]:
    """Always stopped at the end; skips where PostgreSQL is not installed."""
    if (found := binaries()) is None:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    # not pytest's own folder, which only its user may enter
    with TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o711)
        postgres = Postgres(found, Path(folder))
        try:
            yield postgres
        finally:
            postgres.stop("fast")
