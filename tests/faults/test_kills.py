"""kill -9 at random times: of the one process, of workers, and of the process that began them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.workers.pool import DEATHS
from tests.faults.tiny import (
    AS_A_USER,
    alive,
    check_whole,
    finished,
    results,
    run,
    trials_in,
    wait_for,
)

pytestmark = pytest.mark.slow

SINGLE, OF_WORKERS, OF_PARENTS = 4, 5, 2
TRAINED = "made_up=null"
MANY = 16
MOST = DEATHS - 2
"""Workers that may fall over one trial here; over more of them it would be given up, as is
right.
"""
ENDS_WITHIN = 25.0
"""Seconds: within them the first signal must have been heard, as the second one comes after 30."""
SLOW = ["made_up={seconds: 0.02}", "phases.finetune.round_steps=20"]
LONGER = [*SLOW, "workers=2", f"study.n_trials={MANY}"]
LONGEST = [*LONGER, f"study.n_trials={2 * MANY}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What an undisturbed run finds, and how long it takes."""
    folder = tmp_path_factory.mktemp("whole")
    begin = time.perf_counter()
    finished(folder, TRAINED)
    seconds = time.perf_counter() - begin
    check_whole(folder)
    return results(folder), seconds


def test_a_study_killed_at_random_times_ends_as_an_undisturbed_one(
    whole: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """From the imports to the report; a study that comes to its end is followed by another."""
    expected, seconds = whole
    draw, kills, studies = random.Random(0), 0, 0
    while kills < SINGLE or not studies:
        folder = tmp_path / str(studies)
        folder.mkdir(exist_ok=True)
        with run(folder, TRAINED, before=() if kills else AS_A_USER) as process:
            try:
                assert (
                    process.process.wait(
                        draw.uniform(0.1, 1.0) * seconds if kills < SINGLE else None
                    )
                    == 0
                )
            except subprocess.TimeoutExpired:
                process.kill()
                process.ends()
                kills += 1
                continue
        check_whole(folder)
        assert results(folder) == expected
        assert "this study is complete" in finished(folder, TRAINED)
        studies += 1


def test_workers_that_are_killed_are_replaced_and_their_trials_taken_over(tmp_path: Path) -> None:
    draw, kills, fallen = random.Random(1), 0, Counter[int]()
    with run(tmp_path, *LONGER) as process:
        assert process.says("search: ")
        while kills < OF_WORKERS:
            victim = draw.choice(wait_for(process.workers, "a worker"))
            wait_for(
                lambda pid=victim: working(tmp_path, pid), f"worker {victim} runs a trial or ends"
            )
            time.sleep(draw.uniform(0.0, 0.3))
            open_now = held(tmp_path, victim)
            if alive(victim) and all(fallen[number] < MOST for number in open_now):
                fallen.update(open_now)
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda pid=victim: not alive(pid), f"the end of worker {victim}")
                kills += 1
            if process.process.poll() is not None:
                break
        assert process.ends() == 0, process.text
        # both may have been killed once more when there was nothing left to do
        assert (
            max(3, kills - 2) <= process.text.count("ended with signal 9 and is replaced") <= kills
        )
    check_whole(tmp_path, trials=MANY)


def working(folder: Path, pid: int) -> bool:
    return not alive(pid) or bool(held(folder, pid))


def held(folder: Path, pid: int) -> list[int]:
    """Trials that a worker runs, or ran last."""
    leases = {trial.number: trial.user_attrs.get("lease") or {} for trial in trials_in(folder)}
    return [number for number, lease in leases.items() if lease.get("pid") == pid][-1:]


def test_workers_of_a_parent_that_is_killed_end_by_themselves_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    draw = random.Random(2)
    for number in range(OF_PARENTS):
        with run(tmp_path, *LONGEST) as process:
            workers = wait_for(lambda found=process: both(found.workers()), "two workers")
            if number:  # the first one is killed while its workers import
                wait_for(
                    lambda pids=workers: any(held(tmp_path, pid) for pid in pids),
                    "a worker runs a trial",
                )
            time.sleep(draw.uniform(0.0, 2.0))
            process.kill()
            process.process.wait()
            assert wait_for(
                lambda pids=workers: not any(map(alive, pids)),
                "the end of its workers",
                ENDS_WITHIN,
            )
    finished(tmp_path, *LONGEST, seconds=300.0)
    check_whole(tmp_path, trials=2 * MANY)


def both(workers: list[int]) -> list[int]:
    return workers if len(workers) == 2 else []
