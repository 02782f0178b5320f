"""A study of a few seconds in processes of its own, and what has to hold of it whatever happened to
them.

It trains nothing, unless a test says `made_up=null`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.studies.leases import LEADER
from orchestrator.search.studies.storage import Journal
from tests.forked import Forked

TRIALS = 8
TINY = [
    "made_up={}",
    "+experiment=digits_small",
    "model.width=4",
    "phases.train.epochs=1",
    "phases.finetune.round_steps=2",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "phases.confirm.baselines=[uniform]",
    "search.chain.targets=3",
    "threads=1",
    "tracking=none",
    "study.name=tiny",
    f"study.n_trials={TRIALS}",
]
ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds within which whatever is waited for here happens, on a machine that is busy with other
things too.
"""
TIMES = ("seconds", "latency_ms", "latency_ms_ratio", "latency_iqr_ms")
AS_A_USER = ("env",)
"""What a run begins with that starts as a user's does: it imports everything first."""


def command(*words: str) -> list[str]:
    """The tiny study with these words in the place of its own."""
    mine = {word.partition("=")[0] for word in words}
    return [*(word for word in TINY if word.partition("=")[0] not in mine), *words]


class Run:
    """One process with a command line of its own, its standard error read as it comes.

    It has imported everything already, unless it begins `before`: with the words of another
    program.
    """

    def __init__(self, folder: Path, *words: str, before: tuple[str, ...] = ()) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[str] | Forked
        program = ["-m", "orchestrator", *command(*words)]
        if before:
            self.process = subprocess.Popen(
                [*before, sys.executable, *program],
                cwd=folder,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        else:
            self.process = Forked(folder, program, environment)
        self.lines: list[str] = []
        self._new = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def says(self, word: str, seconds: float = PATIENCE) -> bool:
        """Waits for a line with `word`; False where the process ends without."""
        with self._new:
            self._new.wait_for(
                lambda: not self._reader.is_alive() or any(word in line for line in self.lines),
                seconds,
            )
        return any(word in line for line in self.lines)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """The process alone, not those it began."""
        self.process.send_signal(number)

    def ends(self, seconds: float = PATIENCE) -> int:
        """Exit code, negative after a signal."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {seconds} s:\n{self.text}") from error
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        """Ends whatever is left of it and of what it began."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def workers(self) -> list[int]:
        """Process numbers of the workers it has at the moment."""
        return [pid for pid in children(self.process.pid) if "spawn_main" in command_of(pid)]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._new:
                self.lines.append(line.rstrip("\n"))
                self._new.notify_all()
        with self._new:
            self._new.notify_all()


@contextmanager
def run(folder: Path, *words: str, before: tuple[str, ...] = ()) -> Iterator[Run]:
    """A process that is gone at the end, whatever happened, with all that it began."""
    found = Run(folder, *words, before=before)
    try:
        yield found
    finally:
        found.close()


def finished(folder: Path, *words: str, seconds: float = PATIENCE) -> str:
    """The same command once more, undisturbed; what it said."""
    with run(folder, *words) as last:
        assert last.ends(seconds) == 0, last.text
        return last.text


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """For what no event tells of: the state of other processes and of a study."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.1)  # a study is read anew each time
    return found


def trials_in(folder: Path, url: str | None = None) -> list[FrozenTrial]:
    with study_in(folder, url) as study:
        return study.get_trials(deepcopy=False)


@contextmanager
def study_in(folder: Path, url: str | None = None) -> Iterator[optuna.Study]:
    if url is None:
        journal = JournalStorage(Journal(folder / "runs" / "tiny" / "study.journal"))
        yield optuna.load_study(study_name="tiny", storage=journal)
        return
    kept = RDBStorage(url)
    try:
        yield optuna.load_study(study_name="tiny", storage=kept)
    finally:
        kept.remove_session()
        kept.engine.dispose()


def check_whole(folder: Path, url: str | None = None, trials: int = TRIALS) -> None:
    """Each trial once and told, nothing open, every file whole, every plan the weights that its
    lineage names.
    """
    found = trials_in(folder, url)
    assert [trial.number for trial in found] == list(range(trials))
    assert {trial.state for trial in found} <= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    failed = {
        trial.number: trial.user_attrs["reason"]
        for trial in found
        if trial.user_attrs["state"] == "failed"
    }
    assert not failed, failed
    with study_in(folder, url) as study:
        assert study.user_attrs[LEADER] is None
    home = folder / "runs" / "tiny"
    assert [int(row["number"]) for row in table(home / "trials.csv")] == list(range(trials))
    completed = {str(trial.number) for trial in found if trial.state == TrialState.COMPLETE}
    assert {path.name for path in (home / "trials").iterdir()} == completed
    for plan in home.glob("trials/*/plan.json"):
        link = json.loads(plan.read_text())["lineage"]["links"][-1]
        assert link["trial"] == int(plan.parent.name)
        assert digest_of(plan.parent / "weights.safetensors") == link["weights"]
    for plan in home.glob("models/*/plan.json"):
        assert (
            digest_of(plan.parent / "weights.safetensors")
            == json.loads(plan.read_text())["confirmation"]["weights"]
        )
    confirmed = table(home / "front.csv") + table(home / "baselines.csv")
    assert {path.parent.name for path in home.glob("models/*/plan.json")} == {
        Path(row["path"]).name for row in confirmed if row["path"]
    }


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(folder: Path) -> dict[str, str]:
    """Every value of the tables by its place, without what a clock says."""
    home = folder / "runs" / "tiny"
    return {
        f"{name}, row {place}: {key}": value
        for name in ("trials.csv", "front.csv", "baselines.csv")
        for place, row in enumerate(table(home / name))
        for key, value in row.items()
        if key not in TIMES
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
