"""Trials that wait, who takes which, and what happens to those whose process is gone.

An interrupted trial waits again under its own number, and so keeps its parameters and its seed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import create_trial

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Plan
from orchestrator.search.samplers import Distributions, combinations, tried_places
from orchestrator.search.space import Params, SearchContext, Space
from orchestrator.search.studies.leases import LEASE, Leases, owner_of
from orchestrator.search.studies.optuna_inside import set_attribute, set_state, trial_id
from orchestrator.search.studies.trial import (
    DAMAGED,
    ENQUEUED,
    KIND,
    REASON,
    RUNGS,
    SECONDS,
    STATE,
    USER_THRESHOLDS,
    WARM,
    FrozenTrial,
    Study,
    TrialState,
)

CHAINED = "chained"
"""Attribute of the study: whether its chain was enqueued."""
WANTED = "wanted"
"""Attribute of the study: how many trials the searching process asks for."""
LOOK_SECONDS = 0.1
"""Shortest pause between two looks at trials that others left open, in seconds."""
Waiting = TypeVar("Waiting")
# no seed: these draws are no part of what a resumed study repeats
_ANY = random.SystemRandom()


def enqueue_chain(
    study: Study,
    space: Space,
    contexts: Sequence[SearchContext],
    targets: Sequence[float],
    filled: Callable[[Params, int], bool] = lambda params, index: False,
) -> None:
    """Enqueue the chain, from the largest target to the smallest; methods take turns.

    This happens once in a study's life. A target that is `filled` already, by its parameters and
    its index, is left out, and so is one with the plan of a target before it.
    """
    if study.user_attrs.get(CHAINED):
        return
    # a run that was killed while it enqueued the chain left some of it
    enqueued: list[Params] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get(KIND) == "chain":
            enqueued.append(trial.user_attrs[ENQUEUED])
    plans: list[Plan] = []
    for index, target in enumerate(targets):
        context = contexts[index % len(contexts)]
        params = space.chain(context, target)
        if filled(params, index) or _is_planned(space, context, params, plans):
            continue
        if params in enqueued:
            enqueued.remove(params)
            continue
        study.enqueue_trial(
            params,
            user_attrs={KIND: "chain", ENQUEUED: params},
            skip_if_exists=space.levels is not None,
        )
    study.set_user_attr(CHAINED, True)


def _is_planned(space: Space, context: SearchContext, params: Params, plans: list[Plan]) -> bool:
    """Whether one of `plans` is the plan of these parameters, which joins them otherwise."""
    try:
        plan = replace(space.propose(context, params), asked=())
    except PlanError:
        return False  # the trial says what is wrong with it
    if plan in plans:
        return True
    plans.append(plan)
    return False


def enqueue_plans(study: Study, plans: Sequence[Mapping[str, float]]) -> None:
    """Enqueue the user's own plans, by their thresholds, each once in a study's life."""
    known = [trial.user_attrs.get(USER_THRESHOLDS) for trial in study.get_trials(deepcopy=False)]
    for thresholds in plans:
        if thresholds in known:
            continue
        attrs = {KIND: "user", ENQUEUED: {}, USER_THRESHOLDS: dict(thresholds)}
        study.enqueue_trial({}, user_attrs=attrs)


def queued(study: Study) -> list[Params]:
    """Parameters of the enqueued trials that have not ended, the open one included.

    They come in the order in which the trials run.
    """
    params: list[Params] = []
    for trial in study.get_trials(deepcopy=False):
        if ENQUEUED in trial.user_attrs and not trial.state.is_finished():
            params.append(trial.user_attrs[ENQUEUED])
    return params


def done(study: Study) -> int:
    """Number of trials that count towards the number asked for.

    These are all trials of this study that ended by themselves.
    """
    return len([trial for trial in own_trials(study) if trial.state.is_finished()])


def own_trials(study: Study, trials: Sequence[FrozenTrial] | None = None) -> list[FrozenTrial]:
    """Trials neither taken over from another study nor with damaged files.

    Here and below, `trials` are all trials of the study where the caller has them at hand: each
    look at a database takes some queries.
    """
    if trials is None:
        trials = study.get_trials(deepcopy=False)
    damaged = study.user_attrs.get(DAMAGED, {})
    return [
        trial
        for trial in trials
        if trial.user_attrs.get(KIND) != WARM and str(trial.number) not in damaged
    ]


def add_slot(study: Study) -> None:
    """Add a waiting trial; its parameters are drawn when it begins."""
    study.add_trial(create_trial(state=TrialState.WAITING))


def slots_left(
    study: Study,
    distributions: Distributions,
    n_trials: int,
    trials: Sequence[FrozenTrial] | None = None,
) -> int:
    """How many trials may be added.

    A study has up to `n_trials` of its own, and each combination of a finite space once.
    """
    if trials is None:
        trials = study.get_trials(deepcopy=False)
    left = n_trials - len(own_trials(study, trials))
    whole = combinations(distributions)
    if whole is not None:
        ended = [trial for trial in trials if trial.state.is_finished()]
        n_tried = len(tried_places(ended, distributions))
        n_open = len(trials) - len(ended)
        left = min(left, whole - n_tried - n_open)
    return max(0, left)


def waiting(
    study: Study, n_trials: int, trials: Sequence[FrozenTrial] | None = None
) -> list[FrozenTrial]:
    """Trials to be taken, the oldest first; a chain may be longer than the `n_trials` asked for."""
    wanted = own_trials(study, trials)[:n_trials]
    return [trial for trial in wanted if trial.state == TrialState.WAITING]


def claim(study: Study, n_trials: int) -> FrozenTrial | None:
    """The oldest waiting trial, running from now on; None where none waits.

    Of several processes that ask, one gets it.
    """
    for trial in parting(waiting(study, n_trials)):
        try:
            if set_state(study, trial, TrialState.RUNNING):
                return trial
        except UpdateFinishedTrialError:
            continue
        except BaseException:
            # A signal came before or after the trial became ours. If it is another process's claim
            # without a lease yet, that process claims it again.
            put_back(study, trial.number, None)
            raise
    return None


def parting(trials: Sequence[Waiting]) -> Iterator[Waiting]:
    """The first trial, then random ones from growing windows, then the rest in order.

    The window doubles each time (2, 4, 8 ...). If all workers asked in the same order, they would
    contend for every trial in turn.
    """
    left = list(trials)
    size = 1
    while size <= len(left):
        yield left.pop(_ANY.randrange(size))
        size *= 2
    yield from left


def put_back(study: Study, number: int, owner: str | None) -> None:
    """Let a trial that `owner` ran wait again.

    Nothing happens if the trial has ended or another process has signed it since.
    """
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state != TrialState.RUNNING or owner_of(trial) not in (owner, None):
        return
    try:
        set_attribute(study, trial_id(trial), LEASE, None)
        # a trial that runs again does not compete at a rung before it gets there again
        set_attribute(study, trial_id(trial), RUNGS, [])
        set_state(study, trial, TrialState.WAITING)
    except UpdateFinishedTrialError:
        return


def fail(study: Study, number: int, reason: str) -> None:
    """Record a trial as failed whose own process cannot."""
    trial = study.get_trials(deepcopy=False)[number]
    attrs = {STATE: "failed", REASON: reason, SECONDS: 0.0}
    try:
        for name, value in attrs.items():
            set_attribute(study, trial_id(trial), name, value)
        set_state(study, trial, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return


def running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def reclaim_abandoned(study: Study, leases: Leases) -> int:
    """Let trials whose process is gone wait again; return how many."""
    gone = [trial for trial in running(study) if leases.abandoned(trial)]
    for trial in gone:
        put_back(study, trial.number, owner_of(trial))
    return len(gone)


def reclaim_interrupted(
    study: Study, leases: Leases, sleep: Callable[[float], None] = time.sleep
) -> int:
    """As `reclaim_abandoned`, at the beginning of a run.

    It waits until every trial that has just begun is signed by its process or abandoned.
    """
    count = reclaim_abandoned(study, leases)
    while _some_unsigned(study):
        sleep(LOOK_SECONDS)
        count += reclaim_abandoned(study, leases)
    return count


def _some_unsigned(study: Study) -> bool:
    """Whether a running trial has no lease yet."""
    leases = [trial.user_attrs.get(LEASE) for trial in running(study)]
    return None in leases
