"""Trials that wait, who takes which, and what happens to those whose process is gone.

A trial that was interrupted waits again under its own number, and so has the parameters and the
seed that it had.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import create_trial

from orchestrator.search.samplers import Distributions, combinations, tried_places
from orchestrator.search.space import Params, Space, Terrain
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

CHAINED, WANTED = "chained", "wanted"
"""Of the study: that its chain was enqueued, and how many trials the searching process asks for."""
LOOK_SECONDS = 0.1
"""Between two looks at trials that others left open."""
T = TypeVar("T")
_ANY = random.SystemRandom()  # not the one whose draws a study repeats


def enqueue_chain(
    study: Study,
    space: Space,
    terrains: Sequence[Terrain],
    targets: Sequence[float],
    filled: Callable[[Params, int], bool] = lambda params, place: False,
) -> None:
    """The chain, target by target from large to small, once in a study's life; methods take turns.

    A target that is `filled` already, by its parameters and place, is left out.
    """
    if study.user_attrs.get(CHAINED):
        return
    # of a run that was killed while it enqueued them
    there = [
        trial.user_attrs[ENQUEUED]
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(KIND) == "chain"
    ]
    for turn, target in enumerate(targets):
        params = space.chain(terrains[turn % len(terrains)], target)
        if filled(params, turn):
            continue
        if params in there:
            there.remove(params)
            continue
        study.enqueue_trial(
            params,
            user_attrs={KIND: "chain", ENQUEUED: params},
            skip_if_exists=space.levels is not None,
        )
    study.set_user_attr(CHAINED, True)


def enqueue_plans(study: Study, plans: Sequence[Mapping[str, float]]) -> None:
    """The user's own plans, by their thresholds, each once in a study's life."""
    known = [trial.user_attrs.get(USER_THRESHOLDS) for trial in study.get_trials(deepcopy=False)]
    for thresholds in plans:
        if thresholds not in known:
            study.enqueue_trial(
                {}, user_attrs={KIND: "user", ENQUEUED: {}, USER_THRESHOLDS: dict(thresholds)}
            )


def queued(study: Study) -> list[Params]:
    """Parameters of the enqueued trials that have not ended, in the order in which they run, the
    open one included.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
    return [trial.user_attrs[ENQUEUED] for trial in trials if ENQUEUED in trial.user_attrs]


def done(study: Study) -> int:
    """Trials that count towards the number asked for: all of this study's that ended by
    themselves.
    """
    return sum(trial.state.is_finished() for trial in own_trials(study))


def own_trials(study: Study, trials: Sequence[FrozenTrial] | None = None) -> list[FrozenTrial]:
    """Without those that were taken over from another study, and those whose files were damaged.

    Here and below, `trials` are all of the study's where they are at hand: each look at a database
    takes some queries.
    """
    damaged = study.user_attrs.get(DAMAGED, {})
    return [
        trial
        for trial in (study.get_trials(deepcopy=False) if trials is None else trials)
        if trial.user_attrs.get(KIND) != WARM and str(trial.number) not in damaged
    ]


def add_slot(study: Study) -> None:
    """A trial that waits for whoever takes it; its parameters are drawn when it begins."""
    study.add_trial(create_trial(state=TrialState.WAITING))


def slots_left(
    study: Study,
    distributions: Distributions,
    n_trials: int,
    trials: Sequence[FrozenTrial] | None = None,
) -> int:
    """How many trials may be added: up to `n_trials` of this study, and each combination of a
    finite space once.
    """
    trials = study.get_trials(deepcopy=False) if trials is None else trials
    left = n_trials - len(own_trials(study, trials))
    if (whole := combinations(distributions)) is not None:
        ended = [trial for trial in trials if trial.state.is_finished()]
        left = min(
            left, whole - len(tried_places(ended, distributions)) - (len(trials) - len(ended))
        )
    return max(0, left)


def waiting(
    study: Study, n_trials: int, trials: Sequence[FrozenTrial] | None = None
) -> list[FrozenTrial]:
    """Trials to be taken, the oldest first; a chain may be longer than the `n_trials` asked for."""
    return [
        trial for trial in own_trials(study, trials)[:n_trials] if trial.state == TrialState.WAITING
    ]


def claim(study: Study, n_trials: int) -> FrozenTrial | None:
    """The oldest trial that waits, running from now on; None where none does. Of several who ask,
    one gets it.
    """
    for trial in parting(waiting(study, n_trials)):
        try:
            if set_state(study, trial, TrialState.RUNNING):
                return trial
        except UpdateFinishedTrialError:
            continue
        except (
            BaseException
        ):  # a signal, before or after it was ours; another's claim without a lease is asked again
            put_back(study, trial.number, None)
            raise
    return None


def parting(trials: Sequence[T]) -> Iterator[T]:
    """The first trial, then a random one from a window that doubles each time (2, 4, 8 ...), then
    the rest in order.

    If all workers asked in the same order, they would contend for every trial in turn.
    """
    left, size = list(trials), 1
    while size <= len(left):
        yield left.pop(_ANY.randrange(size))
        size *= 2
    yield from left


def put_back(study: Study, number: int, owner: str | None) -> None:
    """A trial that `owner` ran waits again, unless it has ended or another process has signed it
    since.
    """
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state != TrialState.RUNNING or owner_of(trial) not in (owner, None):
        return
    try:
        set_attribute(study, trial_id(trial), LEASE, None)
        # what is run again has no standing for others until it gets there
        set_attribute(study, trial_id(trial), RUNGS, [])
        set_state(study, trial, TrialState.WAITING)
    except UpdateFinishedTrialError:
        return


def fail(study: Study, number: int, reason: str) -> None:
    """Record a trial as failed whose own process cannot."""
    trial = study.get_trials(deepcopy=False)[number]
    try:
        for name, value in {STATE: "failed", REASON: reason, SECONDS: 0.0}.items():
            set_attribute(study, trial_id(trial), name, value)
        set_state(study, trial, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return


def running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def reclaim_abandoned(study: Study, leases: Leases) -> int:
    """Trials whose process is gone wait again; how many."""
    gone = [trial for trial in running(study) if leases.abandoned(trial)]
    for trial in gone:
        put_back(study, trial.number, owner_of(trial))
    return len(gone)


def reclaim_interrupted(
    study: Study, leases: Leases, sleep: Callable[[float], None] = time.sleep
) -> int:
    """As `reclaim_abandoned`, at the beginning: waits for the moment that a process has to sign
    what it has just begun.
    """
    count = reclaim_abandoned(study, leases)
    while any(trial.user_attrs.get(LEASE) is None for trial in running(study)):
        sleep(LOOK_SECONDS)
        count += reclaim_abandoned(study, leases)
    return count
