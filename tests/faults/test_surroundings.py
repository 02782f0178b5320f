"""What a run meets around it: full and read-only disks, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.trial import TrialState

from orchestrator.__main__ import main
from tests.faults.tiny import TINY, alive, check_whole, finished, results, run, trials_in, wait_for


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A disk of its own."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs a mount of its own, which only root may make")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    finished(folder)
    return results(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [20, 60, 130, 220])
def test_a_full_disk_stops_the_run_and_with_room_the_same_command_completes(
    tmp_path: Path, expected: dict[str, str], kilobytes: int
) -> None:
    """Full with the dense model, within the trials, in the confirmation, at the report."""
    with mounted(tmp_path / "disk", "size=8m") as folder:
        filler = folder / "filler"
        filler.write_bytes(b"x" * (8 * 1024 - kilobytes) * 1024)
        with run(folder) as process:
            assert process.ends() == 2, process.text
            assert "must be writable" in process.text
            assert "(No space left on device)" in process.text
            assert "give the same command again" in process.text
            assert "Traceback" not in process.text
        filler.unlink()
        finished(folder)
        check_whole(folder)
        assert results(folder) == expected


def test_a_study_on_a_read_only_disk_is_refused_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with mounted(tmp_path / "disk", "size=1m", "ro") as folder:
        begin = time.perf_counter()
        assert main([*TINY, f"study.out={folder}"]) == 2
        assert (
            f"folder must be writable; '{folder}/tiny' is not (Read-only file system)"
            in capsys.readouterr().err
        )
        assert main([*TINY, f"study.baselines={folder}"]) == 2
        assert "is not (Read-only file system)" in capsys.readouterr().err
        assert time.perf_counter() - begin < 30.0


def only(pid: int, number: int) -> None:
    os.kill(pid, number)


MANY = 8
COMMAND = [
    "made_up={seconds: 0.02}",
    "workers=2",
    f"study.n_trials={MANY}",
    "phases.finetune.round_steps=20",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(only, signal.SIGTERM, 143), (only, signal.SIGINT, 130), (os.killpg, signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGINT", "Ctrl-C"],
)
def test_a_signal_leaves_no_worker_and_no_open_trial_behind(
    tmp_path: Path, send: Callable[[int, int], None], number: int, code: int
) -> None:
    with run(tmp_path, *COMMAND) as process:
        assert process.says("search: "), process.text
        wait_for(lambda: states(tmp_path).count(TrialState.RUNNING) == 2, "two open trials")
        workers = process.workers()
        assert len(workers) == 2
        send(process.process.pid, number)
        assert process.ends(60.0) == code, process.text
        assert not any(map(alive, workers))
        assert (
            "stopped; what was finished is kept; to go on, give the same command again: python -m"
            in process.text
        )
        assert "Traceback" not in process.text
    assert TrialState.RUNNING not in states(tmp_path)
    assert "Traceback" not in "".join(
        path.read_text() for path in tmp_path.glob("runs/tiny/workers/*.log")
    )
    finished(tmp_path, *COMMAND, "workers=1")  # which import nothing anew
    check_whole(tmp_path, trials=MANY)


def states(folder: Path) -> list[TrialState]:
    return [trial.state for trial in trials_in(folder)]
