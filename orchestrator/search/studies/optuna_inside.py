"""Everything that this program uses of Optuna beyond its public interface, in one place.

Optuna has no public way to claim a trial that waits, to put one back, or to draw a trial's
parameters in a given order. `pyproject.toml` bounds Optuna's version for the sake of this file, and
a test keeps such names out of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.studies.trial import Study


def trial_id(trial: FrozenTrial) -> int:
    """The name of a trial in its storage, which is not its number."""
    return trial._trial_id


def stored_trial(study: Study, identity: int) -> FrozenTrial:
    """The trial as its storage has it now."""
    return study._storage.get_trial(identity)


def set_state(study: Study, trial: FrozenTrial, state: TrialState) -> bool:
    """False where another process has claimed the trial.

    Errors: UpdateFinishedTrialError for one that has ended.
    """
    return study._storage.set_trial_state_values(trial._trial_id, state)


def set_attribute(study: Study, identity: int, name: str, value: Any) -> None:
    """Set a user attribute of a trial.

    Errors: UpdateFinishedTrialError for one that has ended.
    """
    study._storage.set_trial_user_attr(identity, name, value)


def opened(study: Study, trial: FrozenTrial, sampler: BaseSampler) -> optuna.Trial:
    """A claimed trial as `ask` would give it; the sampler sees what has ended by now."""
    study.sampler = sampler
    study._thread_local.cached_all_trials = None
    return optuna.Trial(study, trial._trial_id)


def draw(study: Study, trial: optuna.Trial, distributions: Mapping[str, BaseDistribution]) -> None:
    """Draw the parameters of a trial, one by one.

    Where a process was killed in between, the first ones are stored. Optuna would not draw them
    again, and the next draws from the same random numbers would differ from those of an undisturbed
    study. So stored parameters are drawn as well, and the draw is dropped.
    """
    drawn_before = set(trial.params)
    for name, distribution in distributions.items():
        if name in drawn_before and _is_independent(trial, name, distribution):
            frozen = trial._get_latest_trial()
            study.sampler.sample_independent(study, frozen, name, distribution)
        trial._suggest(name, distribution)


def _is_independent(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> bool:
    """Whether the sampler draws this parameter by itself.

    Whether it is fixed is asked first: the other question lets a genetic sampler make a generation.
    """
    if trial._is_fixed_param(name, distribution) or distribution.single():
        return False
    return not trial._is_relative_param(name, distribution)


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a waiting trial was enqueued with."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is one of the distribution's."""
    return distribution._contains(distribution.to_internal_repr(value))
