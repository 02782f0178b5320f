"""One study: opening it, and running one of its trials from parameters to result.

Optuna refuses reports of several objectives, so rungs live in user attributes and a stopped trial
is told to Optuna as PRUNED without values.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from lightning_modules.errors import ConfigError, PlanError, StorageError
from lightning_modules.pruning.plan import Plan
from lightning_modules.recipe import Recipe
from lightning_modules.tasks.metrics import Direction
from orchestrator.redact import redact, redact_tree
from orchestrator.search.goals import Goals
from orchestrator.search.plans.given import given
from orchestrator.search.plans.lineage import differences
from orchestrator.search.plans.measurement import Evaluate, Measurement
from orchestrator.search.samplers import Distributions
from orchestrator.search.space import SearchContext, Space
from orchestrator.search.stopping import Standing, Stopping, Tally
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import LeaseLostError, Leases
from orchestrator.search.studies.storage import storage_of
from orchestrator.search.studies.trial import (
    KIND,
    MEASURED,
    REASON,
    RUNGS,
    SECONDS,
    STATE,
    TRACE,
    USER_THRESHOLDS,
    FrozenTrial,
    Study,
    TrialState,
)
from orchestrator.search.trials.failures import reason_of
from orchestrator.settings import Settings

IDENTITY = "identity"
VERSION = "version"
FORM = 4
"""Version of the stored form of plans and settings.

It is raised where a study made before could not be continued.
"""


@dataclass(frozen=True)
class Rules:
    """What the loop needs beside the study.

    That is: what counts, when a trial is stopped, and how many may fail. `scale` is one small
    difference of the quality metric.
    """

    goals: Goals
    dense_quality: float
    stopping: Stopping
    sampler: Recipe
    seed: int
    max_failures: float = 1.0
    scale: float = 1.0


def open_study(settings: Settings, directions: Sequence[Direction]) -> Study:
    """The study of this name, new or as it was left.

    Errors: ConfigError when the stored trials were made by another search. The message shows the
    difference; nothing is mixed.
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
    if study.user_attrs.get(IDENTITY) is None:
        study.set_user_attr(IDENTITY, _identity(settings))
    if study.get_trials(deepcopy=False):
        _require_same(study, _identity(settings))
    return study


def bind_study(study: Study, settings: Settings) -> None:
    """Makes it the study of this search; for a process that leads it.

    Errors: ConfigError as `open_study`.
    """
    if not study.get_trials(deepcopy=False):
        # before the first trial, a mistake in the settings may still be mended
        study.set_user_attr(IDENTITY, _identity(settings))
    _require_same(study, _identity(settings))


def join_study(settings: Settings) -> Study:
    """The study of this name, which another process has opened.

    Errors: ConfigError where there is none, or it was made by another search.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.load_study(study_name=settings.study.name, storage=storage_of(settings))
    except KeyError as error:
        raise ConfigError(
            f"job=work helps with a study that is there; '{settings.study.name}' is not in "
            f"{redact(settings.study.storage or str(settings.study.folder))}: start it with "
            "job=search"
        ) from error
    _require_same(study, _identity(settings))
    return study


def _identity(settings: Settings) -> dict[str, Any]:
    identity: dict[str, Any] = json.loads(json.dumps(redact_tree(settings.identity())))
    return {VERSION: FORM, **identity}


def _require_same(study: Study, identity: dict[str, Any]) -> None:
    stored = study.user_attrs.get(IDENTITY)
    if stored is not None and stored.get(VERSION) != FORM:
        raise ConfigError(
            f"study '{study.study_name}' was made by an older version, whose plans cannot be "
            "continued; give study.name another value, or finish it with that version"
        )
    changes = differences(stored, identity)
    if changes:
        raise ConfigError(
            f"study '{study.study_name}' belongs to another search: {'; '.join(changes)}. "
            "Give study.name another value, or the old values"
        )


@dataclass(frozen=True)
class Trials:
    """A study, and everything that turns one of its trials into a measurement."""

    study: Study
    space: Space
    context: SearchContext
    evaluate: Evaluate
    rules: Rules
    leases: Leases
    exchange: Exchange

    @property
    def distributions(self) -> Distributions:
        return self.space.distributions(self.context)


def run_trial(trials: Trials, trial: optuna.Trial) -> None:
    """Run one trial, from its parameters to what Optuna is told.

    Errors: LeaseLostError where another process has taken the trial over.
    """
    begin = time.perf_counter()
    try:
        plan = _plan(trials, trial)
        measured = trials.evaluate(plan, trial.number, _Reporter(trials, trial))
        values = _values(measured, trials.rules.goals)
        trials.leases.require(trial.number)
    except (LeaseLostError, StorageError):
        raise
    except PlanError as error:
        # known before anything was paid for, so it does not count as a failure of the study
        _end(trials, trial, "rejected", reason_of(error), begin)
    except Exception as error:
        trial.set_user_attr(TRACE, redact(traceback.format_exc()))
        _end(trials, trial, "failed", reason_of(error), begin)
    else:
        _record(trials, trial, measured, values, begin)


def _record(
    trials: Trials,
    trial: optuna.Trial,
    measured: Measurement,
    values: Sequence[float],
    begin: float,
) -> None:
    """Publish and store a measured trial, and tell Optuna."""
    trials.exchange.publish(trial.number)
    trial.set_user_attr(MEASURED, measured.to_json())
    state, reason = _judge(trial, measured, trials.rules.goals)
    _close(trial, state, reason, begin)
    if not trial.params:
        # samplers must not see it: they draw from the dimensions that all trials have
        _tell(trials, trial, state=TrialState.FAIL)
    elif measured.state == "completed":
        _tell(trials, trial, values)
    else:
        _tell(trials, trial, state=TrialState.PRUNED)


def _plan(trials: Trials, trial: optuna.Trial) -> Plan:
    """The plan of the trial's parameters, or of the user's own thresholds."""
    thresholds = trial.user_attrs.get(USER_THRESHOLDS)
    if thresholds is None:
        return trials.space.propose(trials.context, trial.params)
    return given(trials.space, trials.context, thresholds)


class _Reporter:
    """Records the rungs of a trial as they come, and asks the stopping rule."""

    def __init__(self, trials: Trials, trial: optuna.Trial) -> None:
        self.trials = trials
        self.trial = trial
        self.rungs: list[tuple[int, float, dict[str, float]]] = []

    def __call__(self, rung: int, flops_ratio: float, metrics: Any) -> str | None:
        """The reason to stop, or None.

        Errors: LeaseLostError.
        """
        trial = self.trial
        rules = self.trials.rules
        self.trials.leases.require(trial.number)
        # a stage that is done again reports its rungs anew
        self.rungs = [earlier for earlier in self.rungs if earlier[0] < rung]
        self.rungs.append((rung, flops_ratio, dict(metrics)))
        trial.set_user_attr(RUNGS, self.rungs)
        if trial.user_attrs[KIND] != "search":
            return None
        standing = _standing(trial.number, rung, flops_ratio, metrics, rules)
        others = self.trials.study.get_trials(deepcopy=False)
        peers = _peers(others, trial.number, rules)
        return rules.stopping(standing, peers, _tally(others))


def _judge(trial: optuna.Trial, measured: Measurement, goals: Goals) -> tuple[str, str]:
    """State and reason of the trial; also records for the sampler how far each bound was missed.

    Of a trial that did not complete only the costs count: its metrics are those of an early rung.
    """
    values = measured.values
    for name, excess in goals.excesses(values).items():
        trial.set_constraint(name, excess)
    if measured.state == "completed":
        broken = goals.broken(values)
        if broken:
            reason = f"{broken}; {measured.reason}" if measured.reason else broken
            return "infeasible", reason
    return measured.state, measured.reason


def _values(measured: Measurement, goals: Goals) -> list[float]:
    """The objectives of a completed trial; empty for any other."""
    if measured.state != "completed":
        return []
    values = [measured.metrics[name] for name in goals.signs]
    values += [measured.costs[name] for name in goals.costs]
    for value in values:
        # the comparison is False for NaN, too
        if not abs(value) < float("inf"):
            named = dict(zip(goals.names, values, strict=True))
            raise ValueError(f"objectives must be finite; got {named}")
    return values


def _end(trials: Trials, trial: optuna.Trial, state: str, reason: str, begin: float) -> None:
    """Close a trial that was not measured."""
    trials.leases.require(trial.number)
    _close(trial, state, redact(reason), begin)
    _tell(trials, trial, state=TrialState.FAIL)


def _tell(
    trials: Trials,
    trial: optuna.Trial,
    values: Sequence[float] | None = None,
    state: TrialState | None = None,
) -> None:
    trials.leases.require(trial.number)
    trials.study.tell(trial, values, state)


def _close(trial: optuna.Trial, state: str, reason: str, begin: float) -> None:
    trial.set_user_attr(SECONDS, time.perf_counter() - begin)
    trial.set_user_attr(REASON, reason)
    trial.set_user_attr(STATE, state)


def _standing(number: int, rung: int, flops_ratio: float, metrics: Any, rules: Rules) -> Standing:
    drop = rules.goals.sign * (rules.dense_quality - metrics[rules.goals.quality]) / rules.scale
    return Standing(number, rung, flops_ratio, rules.goals.loss(metrics), drop)


def _peers(trials: Sequence[FrozenTrial], number: int, rules: Rules) -> list[Standing]:
    """Where all trials but this one stood, at each of their rungs."""
    peers: list[Standing] = []
    for other in trials:
        if other.number == number:
            continue
        for rung, flops_ratio, metrics in other.user_attrs.get(RUNGS, ()):
            peers.append(_standing(other.number, rung, flops_ratio, metrics, rules))
    return peers


def _tally(trials: Sequence[FrozenTrial]) -> Tally:
    """Counts the search's trials that ended; failed trials are left out, as samplers do."""
    ended = 0
    completed = 0
    for trial in trials:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        if trial.user_attrs.get(KIND) != "search":
            continue
        ended += 1
        if trial.state == TrialState.COMPLETE:
            completed += 1
    return Tally(ended, completed)
