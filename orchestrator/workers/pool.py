"""Several processes on one machine that run the trials of one study, watched by the process that
began them.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from lightning_modules.errors import UserError
from orchestrator.progress import Progress
from orchestrator.search.studies.leases import LEASE, process_identity
from orchestrator.search.studies.queue import fail, own_trials, running
from orchestrator.search.studies.trial import RUNGS, FrozenTrial, Study
from orchestrator.settings import Settings
from orchestrator.stopped import beginning_processes
from orchestrator.workers.process import GRACE_SECONDS, run_worker

DEATHS = 5
"""So many workers may die over one trial before it is recorded as failed, and so many in a row
without one ending.
"""


class Workers:
    """A context: `settings.workers` processes run trials inside it, and are told to end at its end.

    Each has its share of the CPU's threads, and of the GPUs in turn; what it says is in
    `workers/<number>.log`. In the process that `leads` the study none of them ends by itself, in
    one that helps they do when the search is over.
    """

    def __init__(self, settings: Settings, study: Study, leads: bool) -> None:
        self._settings, self._study, self._leads = settings, study, leads
        self._folder = settings.study.folder / "workers"
        self._processes: dict[int, BaseProcess] = {}
        self._deaths: Counter[int] = Counter()
        self._trial: dict[int | None, int] = {}
        self._in_a_row, self._ended = 0, 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            for place in range(self._settings.workers):
                self._begin(place)
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
        return any(process.is_alive() for process in self._processes.values())

    def look(self, progress: Progress) -> None:
        """Replace those that died, and say what runs. Errors: UserError with what they said where
        all keep ending.
        """
        open_trials = running(self._study)
        progress.tick(_in_words(open_trials))
        place_here = process_identity()["place"]
        for trial in open_trials:
            if (lease := trial.user_attrs.get(LEASE)) and lease["place"] == place_here:
                self._trial[lease["pid"]] = trial.number
        ended = sum(trial.state.is_finished() for trial in own_trials(self._study))
        if ended > self._ended:
            self._ended, self._in_a_row = ended, 0
        for place, process in list(self._processes.items()):
            if process.is_alive() or (process.exitcode == 0 and not self._leads):
                continue
            process.join()
            self._mourn(place, process, progress)
            self._begin(place)

    def _mourn(self, place: int, process: BaseProcess, progress: Progress) -> None:
        said = _last_words(self._log(place))
        if process.exitcode == 2:
            raise UserError(said or f"a worker could not go on; see {self._log(place)}")
        self._in_a_row += 1
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        progress.phase(
            "workers", f"worker {place} ended with {how} and is replaced; see {self._log(place)}"
        )
        # as it was seen last: another worker may have put the trial back by now
        if (number := self._trial.pop(process.pid, None)) is not None:
            self._deaths[number] += 1
            if self._deaths[number] >= DEATHS:
                fail(self._study, number, f"{DEATHS} workers died over it, the last with {how}")
        if self._in_a_row >= DEATHS * self._settings.workers:
            raise UserError(
                f"workers must live long enough to end a trial; {self._in_a_row} in a row ended "
                "without, the last with "
                f"{how}: {said or 'it said nothing'}; memory may be short: take fewer workers, or "
                "a smaller batch"
            )

    def _begin(self, place: int) -> None:
        context = multiprocessing.get_context("spawn")
        given = (share_of(self._settings, place), str(self._log(place)), os.getpid())
        process = context.Process(
            target=run_worker, args=given, name=f"worker {place}"
        )  # a daemon may load no data
        with beginning_processes():
            process.start()
            self._processes[place] = process

    def _log(self, place: int) -> Path:
        return self._folder / f"{place}.log"


def share_of(settings: Settings, place: int) -> Settings:
    """The settings of one of the workers: its threads, its GPU."""
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
    device = settings.device
    if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        device = f"cuda:{place % torch.cuda.device_count()}"
    return settings.model_copy(update={"workers": 1, "threads": threads, "device": device})


def _in_words(trials: list[FrozenTrial]) -> str:
    rungs = [
        f"{trial.number} (round {len(trial.user_attrs.get(RUNGS, ())) + 1})" for trial in trials
    ]
    return f"running: {', '.join(rungs)}" if rungs else "no worker runs a trial"


def _last_words(log: Path) -> str:
    """What a worker said last."""
    lines = (
        [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if log.exists()
        else []
    )
    return lines[-1] if lines else ""
