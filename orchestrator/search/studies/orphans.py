"""Plans that a killed run saved before Optuna was told: nobody may inherit from them."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning_modules.errors import DataError
from orchestrator.search.studies.trial import DAMAGED, STATE, FrozenTrial, Study, TrialState

SAVED = ("completed", "infeasible", "parent")
"""States of trials whose plans stay."""


def plans_told(study: Study) -> set[int]:
    """Numbers of the trials whose plans others may inherit from.

    These are the trials whose end is in the study.
    """
    damaged = study.user_attrs.get(DAMAGED, {})
    numbers: set[int] = set()
    for trial in study.get_trials(deepcopy=False):
        if _stays(trial) and str(trial.number) not in damaged:
            numbers.add(trial.number)
    return numbers


def _stays(trial: FrozenTrial) -> bool:
    """Whether the trial's plan stays.

    A trial may be stored as failed only to hide it from samplers; its plan stays all the same.
    """
    if trial.state == TrialState.COMPLETE:
        return True
    return trial.state == TrialState.FAIL and trial.user_attrs.get(STATE) in SAVED


def remove_orphans(study: Study, models: Path) -> None:
    """Remove finished plans of trials that wait once more, or did not end as completed.

    To be called when no trial is open.
    Errors: DataError for plans of trials that this study does not have.
    """
    # folders are listed before states are read: a plan told of in between stays
    numbers = sorted(int(path.name) for path in models.glob("*") if path.name.isdigit())
    trials = study.get_trials(deepcopy=False)
    foreign = [number for number in numbers if number >= len(trials)]
    if foreign:
        raise DataError(
            f"finished plans must be those of the study's trials; {models} holds {foreign}, and "
            f"the study has {len(trials)} trials. Move the folder away, or give the study.storage "
            "that it belongs to"
        )
    for number in numbers:
        trial = trials[number]
        if trial.state != TrialState.RUNNING and not _stays(trial):
            shutil.rmtree(models / str(number))
