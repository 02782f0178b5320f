"""The parameters of completed trials, and their importance by Optuna's evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from orchestrator.results.decisions import Decisions, Importance
from orchestrator.search.goals import Goals
from orchestrator.search.studies.trial import FrozenTrial, Study, TrialState

LEAST_TRIALS = 10
"""Completed trials from which importances are asked for."""
_BEST_SHARE = 0.1
"""Share of the trials that count as the best, as in Watanabe et al. 2023."""
_BEST_TRIALS = 5
"""How many these are at least; Optuna's documentation advises it."""
_FAMILIES: Mapping[str, tuple[str, Callable[[list[Any]], Any]]] = {
    "offset": ("offsets", np.std),
    "stage": ("stages", np.std),
    "threshold": ("thresholds", np.mean),
    "pattern": ("patterns", np.mean),
}
"""Parameters of one kind, by what their names begin with: the decision, and its value from theirs.

Offsets around an even share matter by their spread, thresholds and patterns by their mean.
"""


def decisions(study: Study, goals: Goals) -> Decisions:
    """What was decided in each completed trial, and the importance of each parameter."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    decided = {trial.number: _decided(trial.params) for trial in completed}
    if len(completed) < LEAST_TRIALS:
        return Decisions(decided)

    def loss(trial: FrozenTrial) -> float:
        # the evaluator takes low values for good ones
        return -goals.sign * float(trial.values[0])

    share = max(_BEST_SHARE, _BEST_TRIALS / len(completed))
    front = _importances(study, share, None)
    quality = _importances(study, share, loss)
    importance = [Importance(name, front[name], quality[name]) for name in front]
    return Decisions(decided, importance)


def _importances(
    study: Study, share: float, loss: Callable[[FrozenTrial], float] | None
) -> dict[str, float]:
    """Shares by parameter, large to small; without a loss the best trials are next to the front."""
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a loss is to be low
        return get_param_importances(study, evaluator=evaluator, target=loss)


def _decided(params: Mapping[str, Any]) -> dict[str, Any]:
    """One value for each decision, families of parameters taken together."""
    members: dict[str, list[Any]] = {}
    decided: dict[str, Any] = {}
    for name, value in params.items():
        family, dot, _ = name.partition(".")
        if dot and family in _FAMILIES:
            members.setdefault(family, []).append(value)
        else:
            decided[name] = value
    for family, values in members.items():
        decision, together = _FAMILIES[family]
        decided[decision] = round(float(together(values)), 6)
    return decided
