"""Trials per second by number of workers and kind of storage: `python benchmarks/scaling.py`.

Trials do nothing but wait, so what is left is what a study costs: claiming, proposing, leasing,
reporting, telling. `--trial-seconds 0` shows the limit of each storage, `--crowd 64 256
--trial-seconds 20` what many machines would do to it: workers are then threads of a few processes,
since they wait nearly all the time. PostgreSQL is started for the occasion where its programs are
found, listening on this machine alone.

`--pairs` times the product itself instead: trials per hour of digits_small with one worker and with
two.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import numpy as np
import optuna
import torch
from machine import machine

from lightning_modules.models import SmallResNet
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Structure
from lightning_modules.recipe import Recipe
from orchestrator.files import write_atomic
from orchestrator.search.goals import Goals
from orchestrator.search.plans.measurement import Measurement, Report
from orchestrator.search.ready import OVER
from orchestrator.search.space import Allocation, SearchContext
from orchestrator.search.stopping import Never
from orchestrator.search.studies.database import database
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import help_search, supply
from orchestrator.search.studies.queue import WANTED
from orchestrator.search.studies.storage import journal
from orchestrator.search.studies.study import Rules, Trials
from orchestrator.stopped import stoppable

ROOT = Path(__file__).resolve().parent.parent
GOALS = Goals("accuracy", {"accuracy": 1.0}, ("flops",))
PER_PROCESS = 64
"""Threads of a crowd in one process."""


@dataclass(frozen=True)
class Row:
    """`ideal` is the rate at which workers would end trials if the study cost nothing; None where
    trials take none.
    """

    storage: str
    workers: int
    trials: int
    trial_seconds: float
    seconds: float
    ideal: float | None

    @property
    def rate(self) -> float:
        return self.trials / self.seconds

    def line(self) -> str:
        share = (
            ""
            if self.ideal is None
            else f"  {100 * self.rate / self.ideal:5.1f} % of what the workers could do"
        )
        return f"{self.storage:<11} {self.workers:4d} workers  {self.rate:8.2f} trials/s{share}"


def opened(url: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = (
        journal(Path(url.removeprefix("journal:")))
        if url.startswith("journal:")
        else database(url, 120.0)
    )
    return optuna.create_study(
        study_name="scaling",
        storage=storage,
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )


def structure_of() -> Structure:
    return discover(SmallResNet(10), (torch.zeros(1, 1, 8, 8),))


def trials_of(study: optuna.Study, structure: Structure, seconds: float, sampler: str) -> Trials:
    macs = Cost(structure).macs
    context = SearchContext(
        structure, macs, macs(structure.sizes), "quantile", np.ones(structure.n_units)
    )

    def evaluate(plan: Plan, number: int, report: Report) -> Measurement:
        """Sleeps, reports two rungs as a trial does, and scores by the number."""
        rungs = []
        for rung in (1, 2):
            time.sleep(0.5 * seconds)
            rungs.append((rung, {"accuracy": 1.0 / (2 + number % 7), "loss": 1.0}))
            report(rung, 0.5, rungs[-1][1])
        return Measurement(
            "completed", None, {"flops": 1.0 + number}, {"flops": 0.5}, {}, tuple(rungs)
        )

    rules = Rules(GOALS, 0.95, Never(), Recipe(sampler), 0)
    return Trials(
        study,
        Allocation(offset=0.3),
        context,
        evaluate,
        rules,
        Leases(study, 60.0),
        Exchange(study, Path()),
    )


def help_with(url: str, seconds: float, sampler: str, threads: int, ready: Any) -> None:
    """One worker process, or many workers as its threads; they begin together."""
    structure = structure_of()

    def one() -> None:
        study = opened(url)
        trials = trials_of(study, structure, seconds, sampler)
        ready.wait()
        help_search(trials, lambda: not study.user_attrs.get(OVER), lambda trial: None)

    crowd = [threading.Thread(target=one) for _ in range(threads)]
    for member in crowd:
        member.start()
    for member in crowd:
        member.join()


def measured(
    name: str, url: str, workers: int, n_trials: int, seconds: float, sampler: str, threads: int
) -> Row:
    """Begin the workers together, let each end two trials, then count what ends in the time that
    follows.
    """
    study = opened(url)
    study.set_user_attr(OVER, False)
    warm = 2 * workers
    study.set_user_attr(WANTED, n_trials + warm)
    ended: list[float] = []
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers + 1)
    begun = [
        context.Process(
            target=help_with,
            args=(url, seconds, sampler, min(threads, workers - first), ready),
            daemon=True,
        )
        for first in range(0, workers, threads)
    ]
    for process in begun:
        process.start()
    trials = trials_of(study, structure_of(), seconds, sampler)
    ready.wait()
    with trials.leases.leading():
        supply(
            trials, n_trials + warm, lambda trial: ended.append(time.perf_counter()), lambda: None
        )
    found = study.get_trials(deepcopy=False)
    study.set_user_attr(OVER, True)
    for process in begun:
        process.join()
    assert len(found) == n_trials + warm, f"{len(found)} trials, {n_trials + warm} were asked for"
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in found)
    times = sorted(
        trial.datetime_complete.timestamp() for trial in found if trial.datetime_complete
    )
    whole = times[-1] - times[warm - 1]
    return Row(name, workers, n_trials, seconds, whole, workers / seconds if seconds else None)


@contextmanager
def postgresql(folder: Path) -> Iterator[str | None]:
    """A server of its own on a free port of this machine; None where it is not installed."""
    found = (
        sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not shutil.which("initdb")
        else [Path()]
    )
    if not found:
        yield None
        return
    programs, data = found[-1], folder / "postgresql"
    data.mkdir(parents=True)
    us = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if us:
        folder.chmod(0o755)
        shutil.chown(data, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c "
        "max_connections=600"
    )

    def say(program: str, *words: str) -> None:
        subprocess.run(
            [*us, str(programs / program), *words], check=True, stdout=subprocess.DEVNULL, cwd="/"
        )

    say("initdb", "-D", str(data), "-A", "trust", "-U", "postgres")
    say("pg_ctl", "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        say("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def pairs(repeats: int) -> None:
    """Trials per hour of digits_small by one worker and by two, one thread each, in turn."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats + 1):
            for workers in (1, 2):
                words = [
                    "+experiment=digits_small",
                    "tracking=none",
                    f"workers={workers}",
                    "threads=1",
                    "stopping=never",
                    f"study.name=s{repeat}-{workers}",
                    f"study.out={folder}/runs",
                    f"study.baselines={folder}/dense",
                    "study.n_trials=40",
                    "phases.confirm.max_models=1",
                    "phases.confirm.baselines=[]",
                ]
                subprocess.run(
                    [sys.executable, "-m", "orchestrator", *words], check=True, capture_output=True
                )
                study = optuna.load_study(
                    study_name=f"s{repeat}-{workers}",
                    storage=journal(Path(folder, "runs", f"s{repeat}-{workers}", "study.journal")),
                )
                times = sorted(
                    t.datetime_complete.timestamp() for t in study.trials if t.datetime_complete
                )
                if repeat:  # the first pair warms the machine up, and trains the dense model
                    rates[workers].append(3600.0 * (len(times) - 12) / (times[-1] - times[11]))
                    print(
                        f"{workers} worker(s): {rates[workers][-1]:.0f} trials per hour", flush=True
                    )
    one, two = (float(np.mean(rates[workers])) for workers in (1, 2))
    print(
        f"two workers against one: {two / one:.2f}x ({two:.0f} against {one:.0f} trials per hour, "
        f"{repeats} pairs)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storages", nargs="+", default=["journal", "sqlite", "postgresql"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--crowd", nargs="+", type=int, default=[], help="numbers of workers as threads"
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--trial-seconds", type=float, default=0.0)
    parser.add_argument("--sampler", default="optuna.samplers.RandomSampler")
    parser.add_argument(
        "--pairs",
        type=int,
        default=0,
        help="how often to time digits_small with one worker and two",
    )
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the rows")
    given = parser.parse_args(arguments)
    if given.pairs:
        pairs(given.pairs)
        return 0
    rows: list[Row] = []
    threads = PER_PROCESS if given.crowd else 1
    with stoppable(), tempfile.TemporaryDirectory() as place, postgresql(Path(place)) as server:
        for workers in given.crowd or given.workers:
            for name in given.storages:
                if name == "postgresql" and server is None:
                    print("postgresql is not installed: left out")
                    continue
                url = address(name, Path(place), workers, server or "")
                rows.append(
                    measured(
                        name,
                        url,
                        workers,
                        given.trials,
                        given.trial_seconds,
                        given.sampler,
                        threads,
                    )
                )
                print(rows[-1].line(), flush=True)
    if given.out is not None:
        write_atomic(
            given.out,
            json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1),
        )
    return 0


def address(storage: str, place: Path, workers: int, server: str) -> str:
    """Of a storage that nothing is in yet."""
    if storage == "journal":
        return f"journal:{place}/{workers}.journal"
    if storage == "sqlite":
        return f"sqlite:///{place}/{workers}.db"
    import psycopg

    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "w{workers}"')
    return f"{server.removesuffix('postgres')}w{workers}"


if __name__ == "__main__":
    sys.exit(main())
