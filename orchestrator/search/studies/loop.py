"""The loops that run trials: alone, beside others, and by letting others run them.

A sampler is made anew for each trial, seeded by the study's seed and the trial's number. Trials
that begin again keep their number, so a resumed study is what an undisturbed one would have been.
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
"""Largest number of trials that wait.

Helpers find work while the searching process is busy with a trial of its own.
"""
FEW = 8
"""Number of trials that wait where no helper is at work.

It is small because every open trial makes each look at a database slower.
"""
EACH = 8
"""Additional trials that wait for each one that runs."""
LONGEST_REST = 30.0
"""Longest pause between two looks, in seconds.

The look before may have been long only because the database was away.
"""


def run_trials(
    trials: Trials,
    n_trials: int,
    on_trial: OnTrial,
    in_time: Callable[[], bool] = lambda: True,
    ahead: int = AHEAD,
    sleep: Sleep = time.sleep,
) -> None:
    """Run trials until `n_trials` have ended, nothing is left to try, or time is up.

    `in_time` says whether there is time for another trial. `ahead` trials wait at any time for
    whoever helps. `on_trial` sees each ended trial as it was stored, also those of other processes
    on this study. A trial that fails is recorded with its reason and the study goes on; only a
    signal ends the study, with the open trial put back.
    """
    study = trials.study
    tell = ended_since(trials, on_trial)
    while in_time():
        begin = time.perf_counter()
        reclaim_abandoned(study, trials.leases)
        top_up(trials, n_trials, ahead)
        claimed = claim(study, n_trials)
        if claimed is not None:
            run_claimed(trials, claimed)
        elif running(study):
            sleep(_rest(begin))
        else:
            break
        tell()
    tell()


def help_search(
    trials: Trials, go_on: Callable[[], bool], on_trial: OnTrial, sleep: Sleep = time.sleep
) -> None:
    """Run waiting trials for as long as there is a reason to `go_on`.

    `on_trial` sees the trials that this process ran.
    """
    study = trials.study
    while go_on():
        begin = time.perf_counter()
        reclaim_abandoned(study, trials.leases)
        claimed = claim(study, study.user_attrs.get(WANTED, 0))
        if claimed is None:
            sleep(_rest(begin))
        elif run_claimed(trials, claimed):
            on_trial(study.get_trials(deepcopy=False)[claimed.number])


def supply(
    trials: Trials,
    n_trials: int,
    on_trial: OnTrial,
    look: Callable[[], None],
    sleep: Sleep = time.sleep,
) -> None:
    """Let others run trials until `n_trials` have ended or nothing is left to try.

    `look` is called again and again; it may raise where nobody is left to run them.
    """
    study = trials.study
    tell = ended_since(trials, on_trial)
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
    """Seconds until the next look, for a look that began at `begin`.

    At most a tenth of the time goes into looks, each of which takes some queries of a database.
    """
    looked = time.perf_counter() - begin
    return min(max(LOOK_SECONDS, 9.0 * looked), LONGEST_REST)


def top_up(trials: Trials, n_trials: int, ahead: int) -> int:
    """Add trials until `ahead` wait, or there are enough; return how many wait then."""
    study = trials.study
    known = study.get_trials(deepcopy=False)
    at_work = [trial for trial in known if trial.state == TrialState.RUNNING]
    ahead = min(ahead, FEW + EACH * len(at_work))
    n_waiting = len(waiting(study, n_trials, known))
    more = 0
    if n_waiting < ahead:
        slots = slots_left(study, trials.distributions, n_trials, known)
        more = min(ahead - n_waiting, slots)
    if more > 0:
        trials.leases.require_lead()
    for _ in range(more):
        add_slot(study)
    return n_waiting + max(0, more)


def ended_since(trials: Trials, on_trial: OnTrial) -> Callable[[], None]:
    """A function that hands every trial that has ended since to `on_trial`, once.

    It is to be called now and then.
    Errors: UserError, from that function, where too many trials have failed.
    """
    study = trials.study
    seen: set[int] = set()
    for trial in own_trials(study):
        if trial.state.is_finished():
            seen.add(trial.number)

    def tell() -> None:
        own = own_trials(study)
        for trial in own:
            if trial.number in seen or not trial.state.is_finished():
                continue
            seen.add(trial.number)
            on_trial(trial)
            outcomes = [_outcome(other) for other in own]
            check_failures(_outcome(trial), outcomes, trials.rules.max_failures)

    return tell


def _outcome(trial: FrozenTrial) -> Ending:
    if not trial.state.is_finished():
        return ("", "")
    known = trial.user_attrs
    return (known.get(STATE, ""), known.get(REASON, ""))


def run_claimed(trials: Trials, claimed: FrozenTrial) -> bool:
    """Run a trial that this process has claimed; False where another process took it over."""
    study = trials.study
    rules = trials.rules
    distributions = trials.distributions
    try:
        with trials.leases.trial(claimed.number, trial_id(claimed)):
            trials.exchange.fetch()
            seed = seed_of(rules.seed, Stream.SAMPLER, claimed.number)
            trial = opened(study, claimed, sampler(rules.sampler, seed, distributions))
            if USER_THRESHOLDS not in claimed.user_attrs:
                draw(study, trial, distributions)
            trial.set_user_attr(KIND, trial.user_attrs.get(KIND, "search"))
            run_trial(trials, trial)
    except (LeaseLostError, UpdateFinishedTrialError):
        return False
    except BaseException:
        put_back(study, claimed.number, trials.leases.owner)
        raise
    return True
