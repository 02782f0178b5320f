"""Trials until there are enough: the chain, then what the sampler proposes around it, here or by other processes."""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.jobs.ends import tracker_of
from orchestrator.jobs.records import record_ended, record_trial
from orchestrator.progress import Progress
from orchestrator.results.rows import TrialRow
from orchestrator.search.goals import Goals
from orchestrator.search.lab.dense import dense_folder
from orchestrator.search.lab.problem import Problem
from orchestrator.search.pace.pacing import CONFIRMING, Pacing, Plans, mixed_copies, pacing_of
from orchestrator.search.plans.given import read_plans
from orchestrator.search.ready import DENSE, OVER, Ready, make_ready, require_one_dense
from orchestrator.search.samplers import exhausted
from orchestrator.search.studies.damaged import redo_damaged
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import AHEAD, supply
from orchestrator.search.studies.loop import search as run_trials
from orchestrator.search.studies.orphans import remove_orphans
from orchestrator.search.studies.queue import (
    WANTED,
    done,
    enqueue_chain,
    enqueue_plans,
    own_trials,
    take_over_interrupted,
)
from orchestrator.search.studies.results import front, rows, trial_row
from orchestrator.search.studies.storage import readable
from orchestrator.search.studies.study import open_study
from orchestrator.search.studies.trial import DAMAGED, MEASURED, SECONDS, WARM, FrozenTrial, Study
from orchestrator.search.studies.warm_start import check_warm_start, filled, take_over
from orchestrator.search.trials.evaluate import Evaluator
from orchestrator.settings import Settings
from orchestrator.tracking import Tracker
from orchestrator.workers.exchange import exchange_of
from orchestrator.workers.pool import Workers


@dataclass(frozen=True)
class Parts:
    """What the configuration names and this job calls."""

    space: Any
    stopping: Any
    tracker: Tracker
    study: Study
    leases: Leases
    exchange: Exchange


def parts_of(settings: Settings, goals: Goals) -> Parts:
    """What a study needs beside its problem; `check_parts` has seen that the parts go together."""
    space, stopping = settings.space.build(), settings.stopping.build()
    tracker = tracker_of(settings)
    with readable(settings):
        study = open_study(settings, goals.directions)
    check_warm_start(settings, study)
    if "id" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
    leases, exchange = Leases(study, settings.study.lease), exchange_of(settings, study)
    return Parts(space, stopping, tracker, study, leases, exchange)


@dataclass(frozen=True)
class Explored:
    """All trials, and what they were made with; `nothing_left` says that every combination of the space was tried."""

    found: list[TrialRow]
    evaluator: Evaluator
    pacing: Pacing | None
    nothing_left: bool


def explore(
    problem: Problem,
    parts: Parts,
    progress: Progress,
    begin: float,
    now: Callable[[], float] = time.perf_counter,
    confirming: float = CONFIRMING,
) -> Explored:
    """The search without what follows it: the chain, then trials around it.

    `begin` is when the run began by the clock `now`; of a budget in time the share `confirming` is left for later.
    """
    settings, study = problem.settings, parts.study
    goals = problem.goals
    require_one_dense(study, problem)
    ready = make_ready(problem, parts.space, settings.study.folder / "trials", progress)
    pacing = _enqueue(ready, parts, progress, begin, now, confirming)
    trials = ready.trials(study, parts.stopping, parts.leases, parts.exchange)
    _take_up(ready, parts, progress)
    n_trials = settings.study.n_trials if pacing is None else sys.maxsize
    asked = f"{n_trials} trials" if pacing is None else pacing.words
    progress.phase("search", f"{asked}, {done(study)} done before")

    def on_trial(trial: FrozenTrial) -> None:
        found = rows(study, goals)
        mine = [row for row in found if row.kind != WARM and row.state != DAMAGED]
        record_trial(parts.tracker, settings, problem, trial)
        left = None if pacing is None else pacing.seconds_left()
        progress.eta(_seconds_left(problem, _ended(study), n_trials) if left is None else left)
        total = n_trials if pacing is None else max(len(mine), len(pacing.targets))
        progress.trial(trial_row(trial, goals), front(found, goals), len(mine), total)

    study.set_user_attr(WANTED, n_trials)
    parts.exchange.publish_dense(dense_folder(settings))
    study.set_user_attr(DENSE, problem.dense_digest)  # from here on others may help
    if settings.workers > 1:
        with progress.timed("workers"), Workers(settings, study, leads=True) as workers:
            supply(trials, n_trials, on_trial, lambda: workers.look(progress))
    else:
        paced = (lambda: True, AHEAD) if pacing is None else (pacing.pace.more, 1)
        run_trials(trials, n_trials, on_trial, *paced)
    parts.leases.require_lead()
    record_ended(
        parts.tracker, settings, problem, study
    )  # by helpers who began before this process looked
    study.set_user_attr(OVER, True)
    parts.exchange.fetch()
    nothing_left = exhausted(study, trials.distributions)
    return Explored(rows(study, goals), ready.evaluator, pacing, nothing_left)


def _enqueue(
    ready: Ready,
    parts: Parts,
    progress: Progress,
    begin: float,
    now: Callable[[], float],
    confirming: float,
) -> Pacing | None:
    """What is known before any trial: plans of another study, the chain, the user's own plans; the pace of all."""
    problem, study = ready.problem, parts.study
    settings = problem.settings
    space, evaluator, ways = ready.space, ready.evaluator, ready.terrains
    chain = settings.search.chain
    if taken := take_over(study, space, ways[0], evaluator):
        progress.phase(
            "warm start", f"{taken} finished plans of study {settings.search.warm_start}"
        )
    pacing = pacing_of(Plans(evaluator, space, ways[0]), study, begin, progress, now, confirming)
    if copies := mixed_copies(problem, study, pacing):
        progress.phase(
            "mixing", f"{copies} copies of the training data with samples mixed by pairs"
        )
    evaluator.mixed = copies
    targets = chain.ratios(settings.objectives.largest_ratio) if pacing is None else pacing.targets
    evaluator.pace = evaluator.pace if pacing is None else pacing.pace
    granularities = [stage.granularity for stage in settings.method.choices()[0].stages()]
    rung_steps = _chain_steps(ready, targets) if pacing is None else pacing.rung_steps
    stands = filled(study, space, ways[0], evaluator, granularities, rung_steps)
    enqueue_chain(study, space, ways, targets, stands)
    enqueue_plans(study, read_plans(settings))
    return pacing


def _ended(study: Study) -> list[FrozenTrial]:
    return [trial for trial in own_trials(study) if trial.state.is_finished()]


def _chain_steps(ready: Ready, targets: Sequence[float]) -> list[float]:
    """Optimizer steps of the chain's plans, as many as the space gives them."""
    terrain = ready.terrains[0]
    timings = [
        ready.space.propose(terrain, ready.space.chain(terrain, target)).timing
        for target in targets
    ]
    return [
        float(timing.total * ready.problem.settings.phases.finetune.round_steps)
        for timing in timings
    ]


def _take_up(ready: Ready, parts: Parts, progress: Progress) -> None:
    """What earlier runs of this study left: open trials, files of trials that never ended or are damaged, records."""
    study, evaluator = parts.study, ready.evaluator
    if taken := take_over_interrupted(study, parts.leases):
        progress.tick(f"{taken} interrupted trials begin again")
    remove_orphans(study, evaluator.models)
    for line in redo_damaged(study, evaluator):
        progress.phase("damaged", line)
    parts.exchange.fetch()
    parts.exchange.publish_all()
    record_ended(parts.tracker, ready.problem.settings, ready.problem, study)


def _seconds_left(problem: Problem, trials: Sequence[FrozenTrial], n_trials: int) -> float:
    """Of the trials that are left and of the confirmation, by what trials of this study have taken so far.

    A round of finetuning is priced at the mean FLOPs ratio of the chain's range.
    """
    confirm, chain = problem.settings.phases.confirm, problem.settings.search.chain
    trained = [
        trial for trial in trials if trial.user_attrs.get(MEASURED, {}).get("trained_rounds")
    ]
    if not trained:
        return 0.0
    rounds = np.array(
        [trial.user_attrs[MEASURED]["trained_rounds"] for trial in trained], dtype=float
    )
    ratios = np.array(
        [trial.user_attrs[MEASURED]["ratios"]["flops"] for trial in trained], dtype=float
    )
    prices = np.array([trial.user_attrs[SECONDS] for trial in trained]) / rounds
    slope, base = np.polyfit(ratios, prices, 1) if np.ptp(ratios) > 0.05 else (0.0, prices.mean())
    mean_ratio = (chain.largest - chain.smallest) / math.log(chain.largest / chain.smallest)
    per_unit = float(np.clip(base + slope * mean_ratio, prices.min(), prices.max()))
    confirmed = confirm.max_models * len(confirm.seeds) * confirm.rounds
    # a ladder is finetuned as long as the front, and some of its models are confirmed
    per_ladder = (
        confirm.max_models * rounds.mean()
        + confirm.max_baseline_models * len(confirm.seeds) * confirm.rounds
    )
    left = max(0, n_trials - len(trials)) * rounds.mean()
    return float(per_unit * (left + confirmed + len(confirm.baselines) * per_ladder))
