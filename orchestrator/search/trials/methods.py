"""A method made ready for one network: a pruner per stage, and its scores on the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.schedules import RETURNING
from lightning_modules.pruning.thresholds import Scores
from orchestrator.export.formats import FORMATS
from orchestrator.search.lab.lab import Lab
from orchestrator.search.space import Hybrid, Patterns, Terrain
from orchestrator.search.space.allocation import Sensitivity
from orchestrator.search.space.outline import terrain_of
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner, comparable, pruner_of
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import MethodSettings, Settings


@dataclass(frozen=True)
class PreparedStage:
    """One stage of a method on the dense model; `scores` are as its scope compares them."""

    settings: MethodSettings
    pruner: UnitPruner | WeightPruner
    scores: Scores


@dataclass(frozen=True)
class PreparedMethod:
    """The stages of a method in turn."""

    settings: MethodSettings
    stages: tuple[PreparedStage, ...]

    def terrain(self, lab: Lab, sensitivity: Sensitivity | None) -> Terrain:
        """What spaces know of it; the sensitivity is that of the first stage."""
        then: Terrain | None = None
        for index, stage in reversed(list(enumerate(self.stages))):
            then = terrain_of(
                stage.settings,
                stage.pruner.structure,
                lab.facts.model,
                stage.scores,
                None if index else sensitivity,
                then,
            )
        assert then is not None
        return then


def prepare_method(lab: Lab, settings: MethodSettings) -> PreparedMethod:
    """Score the dense model once per stage. Errors: PlanError for scores that are not finite, with their group."""
    return PreparedMethod(settings, tuple(_prepared(lab, stage) for stage in settings.stages()))


def _prepared(lab: Lab, settings: MethodSettings) -> PreparedStage:
    pruner = pruner_of(lab, settings)
    full = pruner.structure.full()
    with lab.timed("scores"):
        scores = pruner.scores(lab.facts.model, full, seed_of(lab.seed, Stream.SCORES))
    return PreparedStage(settings, pruner, comparable(pruner.structure, scores, full, settings))


def check_method(settings: Settings, space: Any) -> None:
    """What can be told before anything expensive. Errors: ConfigError for parts that do not go together."""
    shapes = set(getattr(space, "shapes", ()))
    distillation = settings.phases.finetune.distillation
    if getattr(space, "distillation", None) is not None and (
        distillation is None or not distillation.weight
    ):
        raise ConfigError(
            "space.distillation searches the weight of the dense outputs in the loss; it needs "
            "phases.finetune.distillation with a weight above 0"
        )
    if any(settings.method.int8):
        FORMATS["int8"].require()
    for method in settings.method.choices():
        stages = method.stages()
        for stage in stages:
            criterion = stage.scoring().build()
            if stage.granularity != "unit" and not hasattr(criterion, "weights"):
                raise ConfigError(
                    f"method '{stage.name}': {type(criterion).__name__} scores whole units, not single weights; take a "
                    "criterion that does, such as l1, taylor or lamp"
                )
            regrowth = None if stage.regrowth is None else stage.regrowth.build()
            if (
                not stage.soft
                and not (regrowth and regrowth.dense)
                and (returning := shapes & RETURNING)
            ):
                raise ConfigError(
                    f"space.shapes {sorted(returning)} let pruned units come back, which a hard method cannot; "
                    "take method.soft=true, or leave them out"
                )
        pattern = stages[0].granularity == "pattern"
        if pattern != isinstance(space, Patterns):
            raise ConfigError(
                "N:M has no threshold; take space=patterns"
                if pattern
                else "space=patterns is for methods of granularity pattern (N:M); take space=allocation"
            )
        if isinstance(space, Hybrid) != (len(stages) > 1):
            raise ConfigError(
                "a method with a second stage (`then`) and space=hybrid go together; take both or neither"
            )
    if (sparsify := settings.phases.sparsify) is not None:
        sparsify.penalty.build()
