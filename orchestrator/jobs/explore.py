"""Trials until there are enough, in this process or in others.

The chain comes first, then what the sampler proposes around it.
"""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from orchestrator.display import Goal
from orchestrator.jobs.ends import tracker_of
from orchestrator.jobs.records import record_ended, record_trial
from orchestrator.progress import Progress
from orchestrator.results.rows import TrialRow
from orchestrator.search.goals import Goals
from orchestrator.search.lab.dense import dense_folder
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.lab import Lab
from orchestrator.search.pace.pacing import Clock, Pacing, Plans, mixed_copies, pacing_of
from orchestrator.search.plans.given import read_plans
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.ready import (
    DENSE,
    Ready,
    make_ready,
    require_one_dense,
    rules_of,
    store_of,
)
from orchestrator.search.samplers import exhausted
from orchestrator.search.studies.damaged import redo_damaged
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import run_trials, supply
from orchestrator.search.studies.orphans import remove_orphans
from orchestrator.search.studies.previewed import allocations_in, take_allocations
from orchestrator.search.studies.queue import (
    WANTED,
    done,
    enqueue_chain,
    enqueue_plans,
    own_trials,
    queued,
    reclaim_interrupted,
)
from orchestrator.search.studies.results import candidates, front, rows, trial_row
from orchestrator.search.studies.storage import readable
from orchestrator.search.studies.study import Trials, open_study
from orchestrator.search.studies.trial import MEASURED, SECONDS, FrozenTrial, Study
from orchestrator.search.studies.warm_start import (
    FilledTargets,
    Receiver,
    check_warm_start,
    import_trials,
)
from orchestrator.search.trials.allocation_search import allocation_search
from orchestrator.search.trials.evaluate import Evaluator, trial_recipe
from orchestrator.search.trials.methods import PreparedMethod
from orchestrator.settings import ChainSettings, Settings
from orchestrator.settings.targets import TARGET_WORDS
from orchestrator.tracking import Tracker
from orchestrator.workers.exchange import exchange_of


@dataclass(frozen=True)
class StudyParts:
    """What the configuration names and this job calls."""

    space: Any
    stopping: Any
    tracker: Tracker
    study: Study
    leases: Leases
    exchange: Exchange


def parts_of(settings: Settings, goals: Goals) -> StudyParts:
    """What a study needs beside its laboratory.

    `check_parts` has seen that the parts go together.
    """
    space = settings.space.build()
    stopping = settings.stopping.build()
    tracker = tracker_of(settings)
    with readable(settings):
        study = open_study(settings, goals.directions)
    check_warm_start(settings, study)
    if "id" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
    leases = Leases(study, settings.study.lease)
    exchange = exchange_of(settings, study)
    return StudyParts(space, stopping, tracker, study, leases, exchange)


@dataclass(frozen=True)
class Explored:
    """All trials, and what they were made with.

    `nothing_left` says that every combination of the space was tried.
    """

    trials: list[TrialRow]
    methods: tuple[PreparedMethod, ...]
    store: PlanStore
    pacing: Pacing | None
    nothing_left: bool


@dataclass(frozen=True)
class Exploration:
    """One run of the search, without what follows it: the chain, then trials around it.

    `look` looks after the processes that run the trials; None: this process runs them.
    """

    settings: Settings
    lab: Lab
    parts: StudyParts
    progress: Progress
    look: Callable[[], None] | None = None

    @property
    def facts(self) -> Facts:
        return self.lab.facts

    def run(self, clock: Clock) -> Explored:
        """Run all trials.

        `clock` began with the run; of a budget in time it leaves a share for the confirmation.
        """
        settings = self.settings
        parts = self.parts
        study = self.parts.study
        require_one_dense(study, self.facts)
        ready = self._ready()
        store = store_of(settings, self.facts, study)
        pacing = self._enqueue(ready, store, clock)
        evaluator = Evaluator(
            self.lab,
            trial_recipe(settings, self.lab),
            store,
            pace=_usual_pace if pacing is None else pacing.pace,
            mixed=self._mixed_copies(pacing),
            may_save=parts.leases.require,
            allocations=allocation_search(settings, self.lab),
        )
        rules = rules_of(settings, self.facts, parts.stopping)
        trials = Trials(
            study, ready.space, ready.context, evaluator, rules, parts.leases, parts.exchange
        )
        self._take_up(store)
        self._search(trials, pacing)
        nothing_left = exhausted(study, trials.distributions)
        return Explored(rows(study, self.facts.goals), ready.methods, store, pacing, nothing_left)

    def _ready(self) -> Ready:
        """The methods and the space, around the allocations of a preview where there is one."""
        settings = self.settings
        study = self.parts.study
        allocations = take_allocations(settings, study, self.facts)
        if allocations:
            self.progress.phase(
                "warm start", f"{allocations} allocations of preview {settings.search.warm_start}"
            )
        ready = make_ready(settings, self.lab, self.parts.space, self.progress)
        return ready.with_allocations(allocations_in(study, self.facts.structure))

    def _mixed_copies(self, pacing: Pacing | None) -> int | None:
        copies = mixed_copies(self.lab, self.parts.study, pacing)
        if copies:
            self.progress.phase(
                "mixing", f"{copies} copies of the training data with samples mixed by pairs"
            )
        return copies

    def _enqueue(self, ready: Ready, store: PlanStore, clock: Clock) -> Pacing | None:
        """Enqueue what is known before any trial, and return the pace of all trials.

        That is: plans of another study, the chain, and the user's own plans.
        """
        settings = self.settings
        study = self.parts.study
        chain = self.settings.search.chain
        receiver = Receiver(study, settings, self.facts, ready.space, ready.context)
        imported = import_trials(receiver, store)
        if imported:
            self.progress.phase(
                "warm start", f"{imported} finished plans of study {settings.search.warm_start}"
            )
        least = ready.context.least_ratio
        if chain.smallest < least:
            self.progress.phase(
                "targets",
                f"above {least:.1%} of the {TARGET_WORDS[settings.target]}, the least that a plan "
                "reaches",
            )
        plans = Plans(self.facts, ready.space, ready.context)
        pacing = pacing_of(settings, self.lab, plans, study, clock, self.progress)
        if pacing is None:
            targets: Sequence[float] = chain.ratios(ready.context.largest_ratio, least)
            target_steps = self._chain_steps(ready, targets)
        else:
            targets = pacing.targets
            target_steps = pacing.target_steps
        filled = FilledTargets(receiver, target_steps)
        enqueue_chain(study, ready.space, ready.contexts, targets, filled)
        enqueue_plans(study, read_plans(settings))
        return pacing

    def _chain_steps(self, ready: Ready, targets: Sequence[float]) -> list[float]:
        """Optimizer steps of the chain's plans, as many as the space gives them."""
        round_steps = self.lab.phases.finetune.round_steps
        steps = []
        for target in targets:
            params = ready.space.chain(ready.context, target)
            timing = ready.space.unpruned(ready.context, params).timing
            steps.append(float(timing.total * round_steps))
        return steps

    def _take_up(self, store: PlanStore) -> None:
        """Take up what earlier runs of this study left.

        That is: open trials, files of trials that never ended or are damaged, and records.
        """
        parts = self.parts
        progress = self.progress
        interrupted = reclaim_interrupted(parts.study, parts.leases)
        if interrupted:
            progress.tick(f"{interrupted} interrupted trials begin again")
        remove_orphans(parts.study, store.folder)
        for line in redo_damaged(parts.study, store):
            progress.phase("damaged", line)
        parts.exchange.fetch()
        parts.exchange.publish_all()
        self._record_ended()

    def _record_ended(self) -> None:
        record_ended(self.parts.tracker, self.settings, self.facts.structure, self.parts.study)

    def _search(self, trials: Trials, pacing: Pacing | None) -> None:
        """Run trials until there are enough, in this process or in those that it starts."""
        settings = self.settings
        parts = self.parts
        study = self.parts.study
        n_trials = settings.study.n_trials if pacing is None else sys.maxsize
        asked = f"{n_trials} trials" if pacing is None else pacing.words
        self.progress.phase("search", f"{asked}, {done(study)} done before")
        on_trial = partial(self._on_trial, n_trials, pacing)
        self.progress.goal(Goal(settings.objectives.largest_ratio or 0.5, self.facts.goals.sign))
        study.set_user_attr(WANTED, n_trials)
        parts.exchange.publish_dense(dense_folder(settings))
        # from here on others may help
        study.set_user_attr(DENSE, self.facts.dense_digest)
        if self.look is not None:
            with self.progress.timed("workers"):
                supply(trials, n_trials, on_trial, self.look)
        elif pacing is None:
            run_trials(trials, n_trials, on_trial)
        else:
            run_trials(trials, n_trials, on_trial, pacing.pace.more, ahead=1)
        parts.leases.require_lead()
        # trials of helpers that ended before this process looked
        self._record_ended()
        parts.exchange.fetch()

    def _expected_models(self, trials: Sequence[TrialRow]) -> int:
        """How many models are likely to be confirmed.

        They are those that would be now, and one for each target of the chain that is still open.
        """
        confirm = self.settings.phases.confirm
        tolerance = confirm.tolerance * self.facts.scale
        chosen = candidates(trials, self.facts.goals, tolerance, confirm.max_models)
        return min(confirm.max_models, len(chosen) + len(queued(self.parts.study)))

    def _on_trial(self, n_trials: int, pacing: Pacing | None, trial: FrozenTrial) -> None:
        """Record the trial that has just ended, and show the front and the time left."""
        study = self.parts.study
        goals = self.facts.goals
        trials = rows(study, goals)
        ended = _ended(study)
        before = [other for other in ended if _end_of(other) <= _end_of(trial)]
        record_trial(self.parts.tracker, self.settings, self.facts.structure, trial)
        total = n_trials if pacing is None else max(len(ended), len(pacing.targets))
        left = None if pacing is None else pacing.seconds_left()
        if left is None:
            left = seconds_left(self.settings, ended, total, self._expected_models(trials))
        self.progress.eta(left)
        # workers may have ended several trials since the last look: each has its own count
        self.progress.trial(trial_row(trial, goals), front(trials, goals), len(before), total)


def _usual_pace(ratio: float, rounds: int) -> None:
    """Rounds have as many steps as configured."""


def _ended(study: Study) -> list[FrozenTrial]:
    return [trial for trial in own_trials(study) if trial.state.is_finished()]


def _end_of(trial: FrozenTrial) -> datetime:
    """When it ended; every trial that is asked about has."""
    return trial.datetime_complete or datetime.max


def seconds_left(
    settings: Settings, trials: Sequence[FrozenTrial], n_trials: int, models: int
) -> float:
    """Seconds of the trials that are left and of the confirmation of so many `models`.

    They are estimated from what trials of this study have taken so far. A round of finetuning is
    priced at the mean FLOPs ratio of the chain's range. Workers share the trials, the models that
    are confirmed, and the ladders, of which each is one process's.
    """
    if settings.phases.untrained:
        return _untrained_seconds_left(settings, trials, n_trials, models)
    trained = [trial for trial in trials if _rounds(trial)]
    if not trained:
        return 0.0
    confirm = settings.phases.confirm
    rounds = float(np.mean([_rounds(trial) for trial in trained]))
    per_round, per_dense_round = _round_seconds(settings.search.chain, trained)
    rounds_per_model = len(confirm.seeds) * confirm.rounds
    confirmed = models * rounds_per_model
    # a ladder is finetuned as long as the front, and some of its models are confirmed
    finetuned = models * rounds
    per_ladder = finetuned + min(models, confirm.max_baseline_models) * rounds_per_model
    left = max(0, n_trials - len(trials)) * rounds * per_round
    # the dense model is confirmed, too
    models_left = confirmed * per_round + rounds_per_model * per_dense_round
    in_turn = math.ceil(len(confirm.baselines) / settings.workers)
    return (left + models_left) / settings.workers + in_turn * per_ladder * per_round


def _rounds(trial: FrozenTrial) -> int:
    """Rounds of finetuning of a trial; 0 for one that was not measured."""
    return int(trial.user_attrs.get(MEASURED, {}).get("trained_rounds", 0))


def _round_seconds(chain: ChainSettings, trained: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Seconds of a round at the mean FLOPs ratio of the chain's range, and at that of the dense.

    They lie on a line through what the trials took.
    """
    ratios = np.array([trial.user_attrs[MEASURED]["ratios"]["flops"] for trial in trained])
    prices = np.array([trial.user_attrs[SECONDS] / _rounds(trial) for trial in trained])
    slope = 0.0
    base = prices.mean()
    if np.ptp(ratios) > 0.05:
        slope, base = np.polyfit(ratios, prices, 1)
    mean_ratio = (chain.largest - chain.smallest) / math.log(chain.largest / chain.smallest)
    per_round = float(np.clip(base + slope * mean_ratio, prices.min(), prices.max()))
    return per_round, max(per_round, float(base + slope))


def _untrained_seconds_left(
    settings: Settings, trials: Sequence[FrozenTrial], n_trials: int, models: int
) -> float:
    """As `seconds_left` where nothing is finetuned: each step of a ladder takes as long as a
    trial.
    """
    seconds = [trial.user_attrs[SECONDS] for trial in trials if SECONDS in trial.user_attrs]
    if not seconds:
        return 0.0
    confirm = settings.phases.confirm
    left = (n_trials - len(trials)) / settings.workers
    return (left + len(confirm.baselines) * models) * float(np.mean(seconds))
