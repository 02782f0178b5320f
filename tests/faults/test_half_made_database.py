"""The maker of MLflow's SQLite file is killed: whoever comes next is not refused, and nothing
recorded is lost.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lightning_modules.errors import UserError
from orchestrator.tracking.mlflow import MlflowTracker

OPEN = """
import sys
from orchestrator.tracking.mlflow import MlflowTracker
print("begun", flush=True)
MlflowTracker(sys.argv[1], "pruning").open_study("one", {"study_id": "1"}, {"seed": 0})
"""


def opens(database: Path) -> int:
    """Opens a study there; the number of its experiments."""
    MlflowTracker(f"sqlite:///{database}", "pruning").open_study(
        "two", {"study_id": "2"}, {"seed": 0}
    )
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("select count(*) from experiments").fetchone()[0])


def made_half(database: Path) -> None:
    """As its maker leaves it when killed in the middle of the schema: some tables, an old revision,
    no experiment.
    """
    assert opens(database) == 2
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("delete from runs")
        connection.execute("delete from experiments")
        connection.execute("update alembic_version set version_num = 'bf29a5ff90ea'")
        connection.execute("drop table webhook_events")
        connection.commit()


def test_a_half_made_database_is_made_anew(tmp_path: Path) -> None:
    made_half(tmp_path / "one.db")
    half = tmp_path / "one.db"
    other = tmp_path / "mlflow.db"
    other.write_bytes(half.read_bytes())
    assert opens(other) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_database_with_records_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    assert opens(database) == 2
    before = database.stat().st_ino
    assert opens(database) == 2
    assert database.stat().st_ino == before


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "mine.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table mine (a int)")
        connection.execute("insert into mine values (1)")
        connection.commit()
    opens(database)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("select a from mine").fetchall() == [(1,)]


def test_no_more_than_the_beginning_of_a_file_is_read(tmp_path: Path) -> None:
    database = tmp_path / "large.db"
    with database.open("wb") as stream:
        stream.truncate(2**40)  # a sparse file: reading all of it would take memory that nobody has
    with pytest.raises(UserError, match="must name an SQLite file"):
        opens(database)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.2])
def test_after_its_maker_was_killed_the_next_one_opens(tmp_path: Path, seconds: float) -> None:
    """Killed that long after the first sign of the file, at its place or beside it."""
    database = tmp_path / "mlflow.db"
    command = [sys.executable, "-c", OPEN, f"sqlite:///{database}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as maker:
        until = time.monotonic() + 120
        while not any(tmp_path.iterdir()) and maker.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(maker.pid, signal.SIGKILL)
    assert opens(database) == 2
