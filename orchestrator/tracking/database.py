"""MLflow's SQLite file: made elsewhere, and put in its place whole.

Its schema takes seconds and many steps.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from lightning_modules.errors import UserError

_BEGINS = b"SQLite format 3\0"
"""The first bytes of every SQLite file."""


def make_whole(database: Path) -> None:
    """Makes a database with MLflow's schema where there is none, or none that MLflow could use.

    Errors: UserError for a file that is no SQLite database.
    """
    if not database.exists() or _empty(database):
        _put(database, replace=database.exists())
    elif _half_made(database):
        _put(database, replace=True)


def _empty(database: Path) -> bool:
    if database.is_file():
        with database.open("rb") as stream:
            begin = stream.read(len(_BEGINS))
        if begin in (b"", _BEGINS):
            return begin == b""
    raise UserError(
        f"tracking.uri must name an SQLite file; '{database}' is none; choose another name"
    )


def _half_made(database: Path) -> bool:
    """Whether the process that made it was killed.

    The schema comes first, then the default experiment, so nobody recorded in it. MLflow refuses
    such a file: it would make the same tables again. A database of anybody else is left alone.
    """
    query = "select name from sqlite_master where type = 'table'"
    with closing(sqlite3.connect(database)) as connection:
        try:
            tables = {name for (name,) in connection.execute(query)}
            if "experiments" in tables:
                return connection.execute("select 1 from experiments").fetchone() is None
            return not tables
        except sqlite3.DatabaseError:
            # the file is damaged or locked: MLflow says which
            return False


def _put(database: Path, *, replace: bool) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(dir=database.parent, prefix=f".{database.name}.") as scratch:
        made = Path(scratch) / database.name
        # where MLflow's default experiment goes
        store = SqlAlchemyStore(f"sqlite:///{made.resolve()}", "./mlruns")
        store.engine.dispose()
        if replace:
            os.replace(made, database)
            return
        try:
            # of two processes the first one's stays
            os.link(made, database)
        except FileExistsError:
            return
        except OSError:
            # a file system without links
            os.replace(made, database)
