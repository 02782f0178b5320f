"""A method made ready for one problem: a pruner per stage, its scores on the dense model, and its terrain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_modules.errors import ConfigError
from lightning_modules.phases.quantization import require_packages
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.schedules import RETURNING
from lightning_modules.pruning.structure import Counts
from lightning_modules.pruning.thresholds import Pools, Scores
from orchestrator.search.lab.problem import Problem, seed_of
from orchestrator.search.plans.measurement import Cut
from orchestrator.search.space import Hybrid, Patterns, Terrain
from orchestrator.search.space.allocation import Sensitivity
from orchestrator.search.trials.pruners import (
    UnitPruner,
    WeightPruner,
    comparable,
    pools_of,
    pruner_of,
)
from orchestrator.settings import MethodSettings, Settings


@dataclass(frozen=True)
class Dense:
    """One stage as it looks on the dense model; `scores` are as its scope compares them."""

    settings: MethodSettings
    pruner: UnitPruner | WeightPruner
    scores: Scores
    pools: Pools | None

    def counts(self, cut: Cut) -> Counts:
        """Units that a cut leaves of each group, rounded for the hardware."""
        structure = self.pruner.structure
        pools = self.pools if cut.pooled else None
        kept = thresholds.counts(
            structure, self.scores, structure.full(), cut.thresholds, cut.rule, pools
        )
        return thresholds.rounded(structure, kept, self.settings.round_to)

    def terrain(
        self, problem: Problem, sensitivity: Sensitivity | None, then: Terrain | None
    ) -> Terrain:
        objectives, structure, macs = (
            problem.settings.objectives,
            self.pruner.structure,
            self.pruner.cost.macs,
        )
        return Terrain(
            structure=structure,
            macs=macs,
            dense_macs=macs(structure.sizes),
            rule=self.settings.rule,
            scores=self.scores,
            sensitivity=sensitivity,
            max_flops_ratio=objectives.largest_ratio or 1.0,
            pools=self.pools,
            round_to=self.settings.round_to,
            method=self.settings.name,
            then=then,
            depth=problem.settings.search.chain.depth,
        )


@dataclass(frozen=True)
class Method:
    """The stages of a method in turn."""

    settings: MethodSettings
    stages: tuple[Dense, ...]

    def terrain(self, problem: Problem, sensitivity: Sensitivity | None) -> Terrain:
        then: Terrain | None = None
        for stage in reversed(self.stages[1:]):
            then = stage.terrain(problem, None, then)
        return self.stages[0].terrain(problem, sensitivity, then)


def prepare_method(problem: Problem, settings: MethodSettings) -> Method:
    """Score the dense model once per stage. Errors: PlanError for scores that are not finite, with their group."""
    return Method(settings, tuple(_dense(problem, stage) for stage in settings.stages()))


def _dense(problem: Problem, settings: MethodSettings) -> Dense:
    pruner = pruner_of(problem, settings)
    structure = pruner.structure
    with problem.timed("scores"):
        scores = pruner.scores(problem.model, structure.full(), seed_of(problem.settings.seed, 2))
    pools = None if settings.scope == "local" else pools_of(structure, settings, problem.model)
    return Dense(settings, pruner, comparable(structure, scores, structure.full(), settings), pools)


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
        require_packages()
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
