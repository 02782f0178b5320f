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
    """A line for each trial whose plan is damaged or gone; its folder is renamed, its parameters
    wait once more.

    Optuna does not let an ended trial begin again, so that the trial made anew has a number of its
    own; the old one counts no more, and stands on no front. What others inherited from it before
    stays: they have weights of their own. While other processes are at work nothing is set aside:
    they may be about to read it.
    """
    if running(study):
        return
    known = dict(study.user_attrs.get(DAMAGED, {}))
    for trial in study.get_trials(deepcopy=False):
        ended = (
            trial.state.is_finished()
        )  # one that was killed while it was told has the state of its end, and waits
        if not ended or trial.user_attrs.get(STATE) not in SAVED or str(trial.number) in known:
            continue
        folder = store.of(trial.number)
        try:
            store.weights(store.read(folder))
        except DataError as error:
            aside = folder.with_name(f"damaged-{trial.number}")
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                folder.replace(aside)
            again = _again(
                study, trial
            )  # first: a run killed in between makes no trial anew that is not marked
            known[str(trial.number)] = str(error)
            study.set_user_attr(DAMAGED, known)
            yield f"{error}. Its files are now in {aside}{again}"


def _again(study: Study, trial: FrozenTrial) -> str:
    if trial.user_attrs.get(KIND) == WARM:
        return "; it came from another study and is left out"
    attrs: dict[str, Any] = {
        name: trial.user_attrs[name]
        for name in (KIND, ENQUEUED, USER_THRESHOLDS)
        if name in trial.user_attrs
    }
    trials = study.get_trials(deepcopy=False)
    there = next(
        (other.number for other in trials if other.user_attrs.get(ANEW_OF) == trial.number), None
    )
    if there is None:
        study.enqueue_trial(trial.params, user_attrs={**attrs, ANEW_OF: trial.number})
    return f"; it is made anew as trial {len(trials) if there is None else there}"
