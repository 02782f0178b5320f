"""The study that `search.warm_start` names: its finished plans, and its trials."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from lightning_modules.errors import ConfigError
from orchestrator.search.lab.facts import Facts
from orchestrator.search.plans.finished import PLAN, read_plan
from orchestrator.search.plans.lineage import Lineage, lineage_in
from orchestrator.search.studies.orphans import SAVED
from orchestrator.search.studies.storage import storage_of
from orchestrator.search.studies.trial import STATE, Study
from orchestrator.settings import Settings

TAKEN_OVER = "taken_over"
"""Attribute of the study that begins: whether it has taken over what it takes."""


@dataclass(frozen=True)
class OtherStudy:
    """The study of this `name`; `settings` are those of the study that begins with it."""

    name: str
    settings: Settings

    def require_plans(self) -> None:
        """Errors: ConfigError with the nearest names where no other study has finished plans."""
        known: set[str] = set()
        for path in self.settings.study.out.glob("*/trials/*/" + PLAN):
            known.add(path.parents[2].name)
        known.discard(self.settings.study.name)
        if self.name in known:
            return

        def distance(other: str) -> float:
            return -difflib.SequenceMatcher(None, self.name, other).ratio()

        nearest_first = sorted(sorted(known), key=distance)
        raise ConfigError(
            "search.warm_start must name another study with finished plans in "
            f"{self.settings.study.out}; got '{self.name}'; there: "
            f"{', '.join(nearest_first) or 'none'}"
        )

    def require_same_weights(self, lineage: Lineage, facts: Facts) -> None:
        """Errors: ConfigError where the lineage begins with another dense model."""
        if lineage.dense == facts.dense_digest:
            return
        raise ConfigError(
            f"search.warm_start={self.name} begins with other dense weights: "
            f"{lineage.dense[:12]} there, {facts.dense_digest[:12]} here; take the same "
            "study.baselines (or phases.train.checkpoint), or null"
        )

    @cached_property
    def plans(self) -> dict[int, Path]:
        """Folders of its finished plans by their trial."""
        folders: dict[int, Path] = {}
        for path in self._settings.study.folder.glob(f"trials/*/{PLAN}"):
            folder = path.parent
            if folder.name.isdigit():
                folders[int(folder.name)] = folder
        return folders

    def lineage(self, number: int) -> Lineage:
        folder = self.plans[number]
        return lineage_in(read_plan(folder), folder)

    def load(self) -> Study:
        """Errors: ConfigError where its trials are not in the storage of the study that begins."""
        try:
            return optuna.load_study(study_name=self.name, storage=storage_of(self._settings))
        except KeyError as error:
            raise ConfigError(
                f"search.warm_start={self.name} has plans, and its trials are not in the storage "
                "of this study; give study.storage the value it had"
            ) from error

    def finished(self, study: Study) -> list[FrozenTrial]:
        """Its trials that have a finished plan, by number."""
        trials = []
        for trial in study.get_trials(deepcopy=False):
            if trial.number in self.plans and trial.user_attrs.get(STATE) in SAVED:
                trials.append(trial)
        return sorted(trials, key=lambda trial: trial.number)

    @property
    def is_preview(self) -> bool:
        """Whether it finetuned nothing, and the study that begins with it does."""
        first = self.lineage(min(self.plans))
        untrained = first.recipe["phases"]["finetune"]["round_steps"] == 0
        return bool(untrained and not self.settings.phases.untrained)

    @property
    def _settings(self) -> Settings:
        study = self.settings.study.model_copy(update={"name": self.name})
        return self.settings.model_copy(update={"study": study})


def other_study(settings: Settings, study: Study) -> OtherStudy | None:
    """The study that this one is to begin with; None where there is none, or it did already."""
    name = settings.search.warm_start
    if name is None or study.user_attrs.get(TAKEN_OVER):
        return None
    return OtherStudy(name, settings)
