"""Settings that a user leaves open, as the record of an existing study decides them."""

from __future__ import annotations

import optuna

from orchestrator.search.studies.storage import readable, storage_of
from orchestrator.search.studies.study import IDENTITY
from orchestrator.settings import Settings


def with_recorded_depth(settings: Settings) -> Settings:
    """The settings with whole blocks pruned, or not, as in the trials of the existing study.

    Where nobody says `method.depth` it follows from the budget. Another budget for a study that has
    trials is no reason to refuse it.
    """
    if settings.study.storage is None and not (settings.study.folder / "study.journal").exists():
        return settings
    if settings.with_depth(not settings.depth) is settings:
        return settings
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with readable(settings):
        try:
            study = optuna.load_study(study_name=settings.study.name, storage=storage_of(settings))
        except KeyError:
            return settings
        if not study.get_trials(deepcopy=False):
            return settings
    identity = study.user_attrs.get(IDENTITY) or {}
    recorded = identity.get("method", {}).get("depth")
    if recorded in (None, settings.depth):
        return settings
    return settings.with_depth(bool(recorded))
