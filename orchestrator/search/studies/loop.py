"""The loops that run trials: by one process, by one among several, and by one that lets others run
them.

A sampler is made anew for each trial, seeded by the study's seed and the trial's number: with
trials that begin again under their own number, a resumed study is what an undisturbed one would
have been.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from optuna.exceptions import UpdateFinishedTrialError

from orchestrator.search.samplers import sampler
from orchestrator.search.studies.leases import LeaseLostError
from orchestrator.search.studies.optuna_inside import draw, opened, trial_id
from orchestrator.search.studies.queue import (
    LOOK_SECONDS,
    WANTED,
    add_slot,
    claim,
    own_trials,
    put_back,
    reclaim_abandoned,
    running,
    slots_left,
    waiting,
)
from orchestrator.search.studies.study import Trials, run_trial
from orchestrator.search.studies.trial import (
    KIND,
    REASON,
    STATE,
    USER_THRESHOLDS,
    FrozenTrial,
    TrialState,
)
from orchestrator.search.trials.failures import Ending, check_failures
from orchestrator.seeds import Stream, seed_of

OnTrial = Callable[[FrozenTrial], None]
Sleep = Callable[[float], None]
AHEAD = 100
"""Most trials that wait: helpers find work while the searching process is busy with a trial of its
own.
"""
FEW = 8
"""Trials that wait where no helper is at work. Few: every open trial makes each look at a database
slower.
"""
EACH = 8
"""Trials more that wait for each one that runs."""
LONGEST_REST = 30.0
"""Seconds: a look may have been long because the database was away."""


def run_trials(
    trials: Trials,
    n_trials: int,
    on_trial: OnTrial,
    in_time: Callable[[], bool] = lambda: True,
    ahead: int = AHEAD,
    sleep: Sleep = time.sleep,
) -> None:
    """Run trials until `n_trials` have ended, or nothing is left to try, or the time is not enough
    for another.

    `ahead` of them wait at any time for whoever helps. `on_trial` sees each as it was stored, those
    of other processes on this study too. A trial that fails is recorded with its reason and the
    study goes on; only a signal ends the study, with the open trial put back.
    """
    study, tell = trials.study, ended_since(trials, on_trial)
    while in_time():
        begin = time.perf_counter()
        reclaim_abandoned(study, trials.leases)
        top_up(trials, n_trials, ahead)
        if (taken := claim(study, n_trials)) is not None:
            run_claimed(trials, taken)
        elif running(study):
            sleep(_rest(begin))
        else:
            break
        tell()
    tell()


def help_search(
    trials: Trials, go_on: Callable[[], bool], on_trial: OnTrial, sleep: Sleep = time.sleep
) -> None:
    """Run trials that wait, as they come, until there is no more reason to `go_on`; `on_trial` sees
    those run here.
    """
    while go_on():
        begin = time.perf_counter()
        reclaim_abandoned(trials.study, trials.leases)
        if (taken := claim(trials.study, trials.study.user_attrs.get(WANTED, 0))) is None:
            sleep(_rest(begin))
        elif run_claimed(trials, taken):
            on_trial(trials.study.get_trials(deepcopy=False)[taken.number])


def supply(
    trials: Trials,
    n_trials: int,
    on_trial: OnTrial,
    look: Callable[[], None],
    sleep: Sleep = time.sleep,
) -> None:
    """Let others run trials until `n_trials` have ended or nothing is left to try.

    `look` is called again and again: it may raise where nobody is left to run them.
    """
    study, tell = trials.study, ended_since(trials, on_trial)
    while True:
        begin = time.perf_counter()
        look()
        reclaim_abandoned(study, trials.leases)
        if not top_up(trials, n_trials, AHEAD) and not running(study):
            break
        tell()
        sleep(_rest(begin))
    tell()


def _rest(begin: float) -> float:
    """Seconds until the next look: at most a tenth of the time goes into looks, each some queries
    of a database.
    """
    return min(max(LOOK_SECONDS, 9.0 * (time.perf_counter() - begin)), LONGEST_REST)


def top_up(trials: Trials, n_trials: int, ahead: int) -> int:
    """Add trials until `ahead` wait, or there are enough; how many wait then."""
    study = trials.study
    found = study.get_trials(deepcopy=False)
    ahead = min(ahead, FEW + EACH * sum(trial.state == TrialState.RUNNING for trial in found))
    there = len(waiting(study, n_trials, found))
    more = (
        min(ahead - there, slots_left(study, trials.distributions, n_trials, found))
        if there < ahead
        else 0
    )
    if more > 0:
        trials.leases.require_lead()
    for _ in range(more):
        add_slot(study)
    return there + max(0, more)


def ended_since(trials: Trials, on_trial: OnTrial) -> Callable[[], None]:
    """To be called now and then: hands every trial that has ended since to `on_trial`, once.

    Errors: UserError where too many have failed.
    """
    study = trials.study
    seen = {trial.number for trial in own_trials(study) if trial.state.is_finished()}

    def tell() -> None:
        own = own_trials(study)
        for trial in own:
            if trial.number not in seen and trial.state.is_finished():
                seen.add(trial.number)
                on_trial(trial)
                check_failures(
                    _outcome(trial), [_outcome(other) for other in own], trials.rules.max_failures
                )

    return tell


def _outcome(trial: FrozenTrial) -> Ending:
    return (
        (trial.user_attrs.get(STATE, ""), trial.user_attrs.get(REASON, ""))
        if trial.state.is_finished()
        else ("", "")
    )


def run_claimed(trials: Trials, taken: FrozenTrial) -> bool:
    """One trial that this process has claimed; False where another has taken it over meanwhile."""
    study, rules, distributions = trials.study, trials.rules, trials.distributions
    try:
        with trials.leases.trial(taken.number, trial_id(taken)):
            trials.exchange.fetch()
            seed = seed_of(rules.seed, Stream.SAMPLER, taken.number)
            trial = opened(study, taken, sampler(rules.sampler, seed, distributions))
            if USER_THRESHOLDS not in taken.user_attrs:
                draw(study, trial, distributions)
            trial.set_user_attr(KIND, trial.user_attrs.get(KIND, "search"))
            run_trial(trials, trial)
    except (LeaseLostError, UpdateFinishedTrialError):
        return False
    except BaseException:
        put_back(study, taken.number, trials.leases.owner)
        raise
    return True
