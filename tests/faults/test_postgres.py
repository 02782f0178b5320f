"""Studies in PostgreSQL: its server restarted under them, and processes that share nothing but it
and a disk.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.postgres import Postgres, server
from tests.faults.tiny import Run, check_whole, finished, results, run, trials_in, wait_for

pytestmark = pytest.mark.slow

MANY = 12
OF_HOSTS = 24
"""More: the first host must not be done while the second one imports what it needs to help."""
SLOW = ["made_up={seconds: 0.01}", "phases.finetune.round_steps=60"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with server() as found:
        yield found


def told(folder: Path, url: str) -> int:
    """Trials that have ended."""
    return sum(trial.state.is_finished() for trial in trials_in(folder, url))


def begun(folder: Path, url: str, process: Run, trials: int) -> None:
    assert process.says("search: "), process.text
    wait_for(
        lambda: told(folder, url) >= trials or process.process.poll() is not None,
        f"{trials} trials",
    )


def test_a_study_in_a_database_is_the_one_in_a_journal_also_after_kills(
    postgres: Postgres, tmp_path: Path
) -> None:
    draw = random.Random(3)
    kept = {name: tmp_path / name for name in ("journal", "database")}
    for folder in kept.values():
        folder.mkdir()
    begin = time.perf_counter()
    finished(kept["journal"])
    seconds = time.perf_counter() - begin
    words = [f"study.storage={postgres.url('killed')}"]
    for _ in range(3):
        with run(kept["database"], *words) as process:
            try:
                process.process.wait(draw.uniform(0.4, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.ends()
    finished(kept["database"], *words)
    check_whole(kept["database"], words[0].partition("=")[2])
    assert results(kept["database"]) == results(kept["journal"])


def test_a_server_that_is_restarted_under_workers(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url("restarted")
    with run(tmp_path, "workers=2", f"study.n_trials={MANY}", f"study.storage={url}") as process:
        for trials in (1, 5):
            begun(tmp_path, url, process, trials)
            postgres.stop("immediate")
            postgres.start()
        assert process.ends() == 0, process.text
    check_whole(tmp_path, url, trials=MANY)


def test_a_server_that_stays_away_ends_the_run_and_the_same_command_goes_on(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.url("away")
    command = [
        "workers=2",
        f"study.n_trials={MANY}",
        f"study.storage={url}",
        "study.storage_patience=2",
    ]
    with run(tmp_path, *command) as process:
        begun(tmp_path, url, process, 2)
        postgres.stop("immediate")
        try:
            assert process.ends() == 2, process.text
        finally:
            postgres.start()
        assert "has not for 2 s (study.storage_patience)" in process.text
        assert "give the same command again when it is back" in process.text
        assert "Traceback" not in process.text
    finished(tmp_path, *command, "workers=1")
    check_whole(tmp_path, url, trials=MANY)


class Host:
    """A place of its own: where processes are seen only from within, with another name."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self._before = (
            "unshare",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
        )
        self._name = name

    def words(self) -> tuple[str, ...]:
        return (*self._before, f'hostname {self._name} && exec "$@"', "sh")


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Host, Host]:
    found = Host("one", tmp_path / "one"), Host("two", tmp_path / "two")
    tried = subprocess.run([*found[0].words(), "hostname"], capture_output=True, text=True)
    if tried.stdout != "one\n":
        pytest.skip(f"needs namespaces, which only root may make: {tried.stderr}")
    return found


def test_two_hosts_share_a_study_and_each_is_killed_once(
    postgres: Postgres, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    url = postgres.url("hosts")
    shared = [
        f"study.storage={url}",
        f"study.out={tmp_path}/runs",
        f"study.baselines={tmp_path}/baselines",
    ]
    command = [*shared, f"study.n_trials={OF_HOSTS}", "study.lease=3", *SLOW]
    one, two = hosts
    with run(one.folder, *command, before=one.words()) as search:
        begun(tmp_path, url, search, 1)
        with run(two.folder, *command, "job=work", before=two.words()) as helper:
            assert helper.says("as they come"), helper.text
            helper.kill()
        search.kill()
        search.ends()
    with (
        run(two.folder, *command, "job=work", before=two.words()) as helper,
        run(one.folder, *command, before=one.words()) as search,
    ):
        assert search.ends() == 0, search.text
        assert helper.ends() == 0, helper.text
    check_whole(tmp_path, url, trials=OF_HOSTS)
