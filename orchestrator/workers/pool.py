"""Several processes on one machine that run the trials of one study.

The process that began them watches them.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from lightning_modules.errors import UserError
from orchestrator.progress import Progress
from orchestrator.search.studies.leases import LEASE, process_identity
from orchestrator.search.studies.queue import done, fail, running
from orchestrator.search.studies.trial import RUNGS, FrozenTrial, Study
from orchestrator.settings import Settings
from orchestrator.stopped import beginning_processes
from orchestrator.workers.process import GRACE_SECONDS, phase_file, phase_of, run_worker

DEATHS = 5
"""Number of workers that may die over one trial before it is recorded as failed.

Times the number of workers, it is also how many may die in a row without a trial ending.
"""
WAITS = "waits for a trial"


class Workers:
    """A context: `settings.workers` processes run trials inside it, and are told to end at its end.

    Each has its share of the CPU's threads, and of the GPUs in turn; its output is in
    `workers/<number>.log`. In the process that `leads` the study none of them ends by itself. In
    one that helps they do when the search is over.
    """

    def __init__(self, settings: Settings, study: Study, leads: bool) -> None:
        self._settings = settings
        self._study = study
        self._leads = leads
        self._folder = settings.study.folder / "workers"
        self._processes: dict[int, BaseProcess] = {}
        self._deaths: Counter[int] = Counter()
        self._trial: dict[int | None, int] = {}
        self._in_a_row = 0
        self._ended = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            for index in range(self._settings.workers):
                self._begin(index)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes.values():
            process.terminate()
        until = time.monotonic() + GRACE_SECONDS
        for process in self._processes.values():
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def busy(self) -> bool:
        alive = [process for process in self._processes.values() if process.is_alive()]
        return bool(alive)

    def look(self, progress: Progress) -> None:
        """Replace workers that died, and say what runs.

        Errors: UserError with their last words where all keep ending.
        """
        open_trials = running(self._study)
        own_machine = process_identity()["place"]
        at_work: dict[int | None, FrozenTrial] = {}
        for trial in open_trials:
            lease = trial.user_attrs.get(LEASE)
            if lease and lease["place"] == own_machine:
                at_work[lease["pid"]] = trial
                self._trial[lease["pid"]] = trial.number
        states = self._states(at_work)
        progress.workers(states)
        progress.tick(_in_words(open_trials) or _beginning(states))
        ended = done(self._study)
        if ended > self._ended:
            self._ended = ended
            self._in_a_row = 0
        for index, process in list(self._processes.items()):
            if process.is_alive() or (process.exitcode == 0 and not self._leads):
                continue
            process.join()
            self._mourn(index, process, progress)
            self._begin(index)

    def _states(self, at_work: Mapping[int | None, FrozenTrial]) -> list[str]:
        """What each worker does: its trial with the round, and its phase."""
        states = []
        for index, process in self._processes.items():
            trial = at_work.get(process.pid)
            phase = phase_of(self._log(index))
            if trial is not None:
                parts = [f"trial {trial.number}", f"round {_round(trial)}", phase]
                states.append(f"worker {index}: {', '.join([part for part in parts if part])}")
            else:
                states.append(f"worker {index}: {phase or WAITS}")
        return states

    def _mourn(self, index: int, process: BaseProcess, progress: Progress) -> None:
        """Count the death of a worker, and say so.

        Errors: UserError for a mistake of the user's, and where too many die in a row.
        """
        log = self._log(index)
        last_words = _last_words(log)
        if process.exitcode == 2:
            raise UserError(last_words or f"a worker could not go on; see {log}")
        self._in_a_row += 1
        code = process.exitcode or 0
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        progress.phase("workers", f"worker {index} ended with {cause} and is replaced; see {log}")
        # the trial as it was seen last: another worker may have put it back by now
        number = self._trial.pop(process.pid, None)
        if number is not None:
            self._deaths[number] += 1
            if self._deaths[number] >= DEATHS:
                fail(self._study, number, f"{DEATHS} workers died over it, the last with {cause}")
        if self._in_a_row >= DEATHS * self._settings.workers:
            raise UserError(
                f"workers must live long enough to end a trial; {self._in_a_row} in a row ended "
                f"without, the last with {cause}: {last_words or 'it said nothing'}; memory may be "
                "short: take fewer workers, or a smaller batch"
            )

    def _begin(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        phase_file(self._log(index)).unlink(missing_ok=True)
        arguments = (share_of(self._settings, index), str(self._log(index)), os.getpid())
        # no daemon: a daemon may start no processes, and so load no data
        process = context.Process(target=run_worker, args=arguments, name=f"worker {index}")
        with beginning_processes():
            process.start()
            self._processes[index] = process

    def _log(self, index: int) -> Path:
        return self._folder / f"{index}.log"


class Crew:
    """A context: the workers of the process that leads a study.

    They begin when they are first looked at, and end with the context.
    """

    def __init__(self, settings: Settings, study: Study, progress: Progress) -> None:
        self._stack = ExitStack()
        self._workers = Workers(settings, study, leads=True)
        self._progress = progress
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def look(self) -> None:
        """As `Workers.look`."""
        if not self._begun:
            self._stack.enter_context(self._workers)
            self._begun = True
        self._workers.look(self._progress)


def share_of(settings: Settings, index: int) -> Settings:
    """The settings of one of the workers: its threads, its GPU."""
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
    device = settings.device
    if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        device = f"cuda:{index % torch.cuda.device_count()}"
    return settings.model_copy(update={"workers": 1, "threads": threads, "device": device})


def _round(trial: FrozenTrial) -> int:
    return len(trial.user_attrs.get(RUNGS, ())) + 1


def _in_words(trials: list[FrozenTrial]) -> str:
    """The trials that run, here and elsewhere; empty where none does."""
    parts = [f"{trial.number} (round {_round(trial)})" for trial in trials]
    return f"running: {', '.join(parts)}" if parts else ""


def _beginning(states: Sequence[str]) -> str:
    """What workers do that have no trial yet; empty where all wait for one."""
    return ", ".join([state for state in states if not state.endswith(WAITS)])


def _last_words(log: Path) -> str:
    """The last line of a worker's output."""
    if not log.exists():
        return ""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if line.strip():
            return line
    return ""
