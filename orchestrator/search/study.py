"""One study: what Optuna is asked, what is told to it, and when the search is done.

Optuna refuses reports of several objectives, so rungs live in user attributes and a stopped trial is told as PRUNED
without values. A sampler is made anew for each trial, seeded by the study's seed and the trial's number, and a trial
that was interrupted begins again under its own number: a resumed study then is what an undisturbed one would have been.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial as FrozenTrial  # re-exported: optuna stays in this folder
from optuna.trial import TrialState as TrialState

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe
from orchestrator.redact import redact, redact_tree
from orchestrator.search.failures import Outcome, check_failures, reason_of
from orchestrator.search.given import given
from orchestrator.search.goals import Direction, Goals
from orchestrator.search.lineage import differences
from orchestrator.search.measurement import Evaluate, Measurement
from orchestrator.search.problem import seed_of
from orchestrator.search.samplers import exhausted, sampler
from orchestrator.search.space import Params, Space, Terrain
from orchestrator.search.stopping import Ended, Standing, Stopping
from orchestrator.settings import Settings

KIND, REASON, STATE, RUNGS = "kind", "reason", "state", "rungs"
MEASURED, SECONDS, TRACE = "measured", "seconds", "trace"
IDENTITY, CHAINED, GIVEN, ORIGIN, OWN = "identity", "chained", "given", "origin", "own"
DAMAGED = "damaged"
"""Of a study: the reason by the number of each trial whose files were damaged; it is made anew under another number."""
WARM = "warm"
"""The kind of a trial that was taken over from another study: no work of this one."""

Study = optuna.Study
OnTrial = Callable[[FrozenTrial], None]


@dataclass(frozen=True)
class Rules:
    """What the loop needs beside the study: what counts, when a trial is stopped, and how many may fail."""

    goals: Goals
    dense_quality: float
    stopping: Stopping
    sampler: Recipe
    seed: int
    max_failures: float = 1.0


def open_study(settings: Settings, directions: Sequence[Direction]) -> Study:
    """The study of this name, new or as it was left.

    Errors: ConfigError when the stored study was made by another search: the difference is shown, nothing is mixed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    study = optuna.create_study(
        study_name=settings.study.name,
        storage=storage_of(settings),
        directions=list(directions),
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(settings.seed),
    )
    identity = json.loads(json.dumps(redact_tree(settings.identity())))
    stored = study.user_attrs.get(IDENTITY)
    if stored is None or not study.get_trials(deepcopy=False):  # a mistake mended before the first trial binds nobody
        study.set_user_attr(IDENTITY, identity)
    elif changes := differences(stored, identity):
        raise ConfigError(
            f"study '{settings.study.name}' belongs to another search: {'; '.join(changes)}. "
            "Give study.name another value, or the old values"
        )
    return study


def storage_of(settings: Settings) -> BaseStorage | str:
    """Where the study of this name is kept."""
    if settings.study.storage is not None:
        return settings.study.storage
    path = settings.study.folder / "study.journal"
    return JournalStorage(JournalFileBackend(str(path)))


def enqueue_chain(
    study: Study,
    space: Space,
    terrains: Sequence[Terrain],
    targets: Sequence[float],
    blends: Sequence[float],
    filled: Callable[[Params, int], bool] = lambda params, place: False,
) -> None:
    """The opening ladder, rung by rung from large to small, once in a study's life; methods take turns on its rungs.

    A rung that is `filled` already, by its parameters and place, is left out.
    """
    if study.user_attrs.get(CHAINED):
        return
    names = {
        blend: "uniform" if blend == 0.0 else "equal-loss" if blend == 1.0 else f"blend {blend:g}" for blend in blends
    }
    for turn, target in enumerate(targets):
        for blend in blends if space.needs_profile else blends[:1]:
            params = space.chain(terrains[turn % len(terrains)], target, blend)
            if filled(params, turn):
                continue
            kind = f"chain {names[blend]}" if space.needs_profile else "chain"
            study.enqueue_trial(params, user_attrs={KIND: kind, GIVEN: params}, skip_if_exists=space.levels is not None)
    study.set_user_attr(CHAINED, True)


def enqueue_plans(study: Study, plans: Sequence[Mapping[str, float]]) -> None:
    """The user's own plans, by their thresholds, each once in a study's life."""
    known = [trial.user_attrs.get(OWN) for trial in study.get_trials(deepcopy=False)]
    for thresholds in plans:
        if thresholds not in known:
            study.enqueue_trial({}, user_attrs={KIND: "given", GIVEN: {}, OWN: dict(thresholds)})


def queued(study: Study) -> list[Params]:
    """Parameters of the enqueued trials that have not ended, in the order in which they run, the open one included."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
    return [trial.user_attrs[GIVEN] for trial in trials if GIVEN in trial.user_attrs]


def done(study: Study) -> int:
    """Trials that count towards the number asked for: all of this study's that ended by themselves, files whole."""
    damaged = study.user_attrs.get(DAMAGED, {})
    return sum(trial.state.is_finished() for trial in own_trials(study) if str(trial.number) not in damaged)


def own_trials(study: Study) -> list[FrozenTrial]:
    """Without those that were taken over from another study."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(KIND) != WARM]


def take_over_interrupted(study: Study) -> int:
    """Trials that a killed run left open wait once more, with the number, the parameters and so the seed they had."""
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in left:
        _put_back(study, trial)
    return len(left)


def _put_back(study: Study, trial: FrozenTrial) -> None:
    """Optuna's queue takes a running trial back; `ask` hands out waiting trials first, the oldest of them before all.

    Under a new number it would have another seed, come after the rest of the chain and shift all later proposals.
    """
    if trial.state.is_finished():  # the signal came between telling and going on
        return
    storage = study._storage
    storage.set_trial_user_attr(trial._trial_id, RUNGS, [])  # of what is run again: no standing for others
    storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def search(
    study: Study,
    space: Space,
    terrain: Terrain,
    evaluate: Evaluate,
    rules: Rules,
    n_trials: int,
    on_trial: OnTrial,
    in_time: Callable[[], bool] = lambda: True,
) -> None:
    """Run trials until `n_trials` have ended, or nothing is left to try, or the time is not enough for another.

    `on_trial` sees each as it was stored.

    A trial that fails is recorded with its reason and the study goes on; only a signal ends the study, with
    the open trial put back among those that wait. Errors: UserError where too many fail.
    """
    distributions = space.distributions(terrain)
    while done(study) < n_trials and in_time() and not exhausted(study, distributions):
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        number = waiting[0].number if waiting else len(study.get_trials(deepcopy=False))
        study.sampler = sampler(rules.sampler, seed_of(rules.seed, 3, number), distributions)
        own = bool(waiting) and OWN in waiting[0].user_attrs
        trial = study.ask({} if own else distributions)
        trial.set_user_attr(KIND, trial.user_attrs.get(KIND, "search"))
        try:
            run_trial(study, trial, space, terrain, evaluate, rules)
        except BaseException:
            _put_back(study, study.get_trials(deepcopy=False)[trial.number])
            raise
        ended = study.get_trials(deepcopy=False)[trial.number]
        on_trial(ended)
        check_failures(_outcome(ended), [_outcome(other) for other in own_trials(study)], rules.max_failures)


def run_trial(
    study: Study, trial: optuna.Trial, space: Space, terrain: Terrain, evaluate: Evaluate, rules: Rules
) -> None:
    """One trial from its parameters to what is told."""
    begin = time.perf_counter()
    rungs: list[tuple[int, float, dict[str, float]]] = []

    def report(rung: int, flops_ratio: float, metrics: Any) -> str | None:
        rungs[:] = [earlier for earlier in rungs if earlier[0] < rung]  # what is done again has its rungs anew
        rungs.append((rung, flops_ratio, dict(metrics)))
        trial.set_user_attr(RUNGS, rungs)
        if trial.user_attrs[KIND] != "search":
            return None
        mine = _standing(trial.number, rung, flops_ratio, metrics, rules)
        return rules.stopping(mine, _peers(study, trial.number, rules), _ended(study))

    try:
        own = trial.user_attrs.get(OWN)
        proposal = space.propose(terrain, trial.params) if own is None else given(space, terrain, own)
        measured = evaluate(proposal, trial.number, report)
        values = _values(measured, rules.goals)
    except Exception as error:
        _fail(study, trial, reason_of(error), traceback.format_exc(), begin)
    else:
        trial.set_user_attr(MEASURED, measured.to_json())
        state, reason = _judge(trial, measured, rules.goals)
        _close(trial, state, reason, begin)
        if not trial.params:  # samplers must not see it: they draw from the dimensions that all trials have
            study.tell(trial, state=TrialState.FAIL)
        elif measured.state == "completed":
            study.tell(trial, values)
        else:
            study.tell(trial, state=TrialState.PRUNED)


def _judge(trial: optuna.Trial, measured: Measurement, goals: Goals) -> tuple[str, str]:
    """Tell the sampler how far each bound was missed; (state, reason) of the trial.

    Of a trial that did not complete the costs alone count: its metrics are of an early rung.
    """
    values = {**measured.costs, **(measured.metrics if measured.state == "completed" else {})}
    for name, excess in goals.excesses(values).items():
        trial.set_constraint(name, excess)
    if measured.state == "completed" and (broken := goals.broken(values)):
        return "infeasible", "; ".join(filter(None, (broken, measured.reason)))
    return measured.state, measured.reason


def _values(measured: Measurement, goals: Goals) -> list[float]:
    if measured.state != "completed":
        return []
    values = [*(measured.metrics[name] for name in goals.signs), *(measured.costs[name] for name in goals.costs)]
    if not all(abs(value) < float("inf") for value in values):
        raise ValueError(f"objectives must be finite; got {dict(zip(goals.names, values, strict=True))}")
    return values


def _fail(study: Study, trial: optuna.Trial, reason: str, trace: str, begin: float) -> None:
    trial.set_user_attr(TRACE, redact(trace))
    _close(trial, "failed", redact(reason), begin)
    study.tell(trial, state=TrialState.FAIL)


def _close(trial: optuna.Trial, state: str, reason: str, begin: float) -> None:
    trial.set_user_attr(SECONDS, time.perf_counter() - begin)
    trial.set_user_attr(REASON, reason)
    trial.set_user_attr(STATE, state)


def _outcome(trial: FrozenTrial) -> Outcome:
    known = trial.user_attrs if trial.state.is_finished() else {}
    return known.get(STATE, ""), known.get(REASON, "")


def _standing(number: int, rung: int, flops_ratio: float, metrics: Any, rules: Rules) -> Standing:
    drop = rules.goals.sign * (rules.dense_quality - metrics[rules.goals.quality])
    return Standing(number, rung, flops_ratio, metrics["loss"], drop)


def _peers(study: Study, number: int, rules: Rules) -> list[Standing]:
    return [
        _standing(other.number, rung, flops_ratio, metrics, rules)
        for other in study.get_trials(deepcopy=False)
        if other.number != number
        for rung, flops_ratio, metrics in other.user_attrs.get(RUNGS, ())
    ]


def _ended(study: Study) -> Ended:
    """Failed trials are left out, as samplers do."""
    told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    found = [trial.state for trial in told if trial.user_attrs.get(KIND) == "search"]
    return Ended(len(found), found.count(TrialState.COMPLETE))
