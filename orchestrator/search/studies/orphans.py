"""Plans that a killed run saved and never told of: nobody may inherit from them."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning_modules.errors import DataError
from orchestrator.search.studies.trial import DAMAGED, STATE, FrozenTrial, Study, TrialState

SAVED = ("completed", "infeasible", "parent")
"""States of trials whose plans stay."""


def plans_told(study: Study) -> set[int]:
    """Numbers of the trials whose plans others may inherit from: those whose end is in the
    study.
    """
    damaged = study.user_attrs.get(DAMAGED, {})
    trials = study.get_trials(deepcopy=False)
    return {trial.number for trial in trials if _stays(trial) and str(trial.number) not in damaged}


def _stays(trial: FrozenTrial) -> bool:
    hidden = (
        trial.state == TrialState.FAIL and trial.user_attrs.get(STATE) in SAVED
    )  # from samplers alone
    return trial.state == TrialState.COMPLETE or hidden


def remove_orphans(study: Study, models: Path) -> None:
    """Removes the finished plans of trials that wait once more, or ended otherwise than as
    completed.

    To be called when no trial is open. Errors: DataError for plans of trials that this study does
    not have.
    """
    # folders before states: a plan that is told of meanwhile stays
    numbers = sorted(int(path.name) for path in models.glob("*") if path.name.isdigit())
    trials = study.get_trials(deepcopy=False)
    if foreign := [number for number in numbers if number >= len(trials)]:
        raise DataError(
            f"finished plans must be those of the study's trials; {models} holds {foreign}, and "
            "the study has "
            f"{len(trials)} trials. Move the folder away, or give the study.storage that it "
            "belongs to"
        )
    for number in numbers:
        if trials[number].state != TrialState.RUNNING and not _stays(trials[number]):
            shutil.rmtree(models / str(number))
