"""Finished plans whose files are not as they were saved: named, set aside, and made anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from lightning_modules.errors import DataError
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.studies.orphans import SAVED
from orchestrator.search.studies.queue import running
from orchestrator.search.studies.trial import (
    ANEW_OF,
    DAMAGED,
    ENQUEUED,
    KIND,
    STATE,
    USER_THRESHOLDS,
    WARM,
    FrozenTrial,
    Study,
)


def redo_damaged(study: Study, store: PlanStore) -> Iterator[str]:
    """Yields a line for each trial whose plan is damaged or gone.

    The plan's folder is renamed, and the trial's parameters wait once more. Optuna does not let an
    ended trial begin again, so the trial made anew has a number of its own; the old one counts no
    more, and stands on no front. What others inherited from it before stays: they have weights of
    their own. While other processes are at work nothing is set aside: they may be about to read it.
    """
    if running(study):
        return
    known = dict(study.user_attrs.get(DAMAGED, {}))
    for trial in study.get_trials(deepcopy=False):
        if not _has_plan(trial) or str(trial.number) in known:
            continue
        folder = store.of(trial.number)
        try:
            store.weights(store.read(folder))
        except DataError as error:
            aside = folder.with_name(f"damaged-{trial.number}")
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                folder.replace(aside)
            # enqueued before the mark: if the run is killed in between, it is enqueued only once
            again = _again(study, trial)
            known[str(trial.number)] = str(error)
            study.set_user_attr(DAMAGED, known)
            yield f"{error}. Its files are now in {aside}{again}"


def _has_plan(trial: FrozenTrial) -> bool:
    """Whether the trial ended with a plan that stays.

    A trial that was killed while Optuna was told of it has the state of its end, and waits.
    """
    return trial.state.is_finished() and trial.user_attrs.get(STATE) in SAVED


def _again(study: Study, trial: FrozenTrial) -> str:
    """Enqueue the trial anew, unless that was done before; the end of the line about it."""
    if trial.user_attrs.get(KIND) == WARM:
        return "; it came from another study and is left out"
    trials = study.get_trials(deepcopy=False)
    for other in trials:
        if other.user_attrs.get(ANEW_OF) == trial.number:
            return f"; it is made anew as trial {other.number}"
    attrs: dict[str, Any] = {}
    for name in (KIND, ENQUEUED, USER_THRESHOLDS):
        if name in trial.user_attrs:
            attrs[name] = trial.user_attrs[name]
    attrs[ANEW_OF] = trial.number
    study.enqueue_trial(trial.params, user_attrs=attrs)

    return f"; it is made anew as trial {len(trials)}"
