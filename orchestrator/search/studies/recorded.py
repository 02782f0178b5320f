"""What the record of an existing study says: settings that a user leaves open, and its trials."""

from __future__ import annotations

import optuna

from orchestrator.results.decisions import Decisions
from orchestrator.results.rows import TrialRow
from orchestrator.search.goals import Goals
from orchestrator.search.studies.decisions import decisions
from orchestrator.search.studies.results import rows
from orchestrator.search.studies.storage import readable, storage_of
from orchestrator.search.studies.study import IDENTITY
from orchestrator.settings import Settings


def with_recorded_depth(settings: Settings) -> Settings:
    """The settings with whole blocks pruned, or not, as in the trials of the existing study.

    Where nobody says `method.depth` it follows from the budget. Another budget for a study that has
    trials is no reason to refuse it.
    """
    if settings.with_depth(not settings.depth) is settings:
        return settings
    study = _existing(settings)
    if study is None:
        return settings
    identity = study.user_attrs.get(IDENTITY) or {}
    recorded = identity.get("method", {}).get("depth")
    if recorded in (None, settings.depth):
        return settings
    return settings.with_depth(bool(recorded))


def rows_so_far(settings: Settings, goals: Goals) -> list[TrialRow]:
    """The trials of the study that have ended; none where there is no study."""
    study = _existing(settings)
    return [] if study is None else rows(study, goals)


def decisions_so_far(settings: Settings, goals: Goals) -> Decisions:
    """What decided in the trials that have completed; nothing where there is no study."""
    study = _existing(settings)
    return Decisions() if study is None else decisions(study, goals)


def _existing(settings: Settings) -> optuna.Study | None:
    """The study of these settings; None where there is none, or one without trials.

    Errors: DataError for a storage that Optuna did not write.
    """
    if settings.study.storage is None and not (settings.study.folder / "study.journal").exists():
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with readable(settings):
        try:
            study = optuna.load_study(study_name=settings.study.name, storage=storage_of(settings))
        except KeyError:
            return None
        return study if study.get_trials(deepcopy=False) else None
