"""What a method does to a model, one class per granularity: score units, then remove them or set weights to zero.

Both have a `structure` and its `cost`, those of the dense model; scores and keeps are over its units.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from torch import Tensor, nn

from lightning_modules.phases.watched import WatchedBatches
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.criteria import Calibration
from lightning_modules.pruning.criteria.blocks import block_scores
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts, Keep, Structure, isomorphic_classes
from lightning_modules.pruning.thresholds import Pools, Scores
from lightning_modules.pruning.weights import (
    Masks,
    Weight,
    apply,
    masks_of,
    shares,
    unit_scores,
    weight_structure,
)
from lightning_modules.tasks.contract import step_loss, to_device
from orchestrator.search.lab.problem import Problem
from orchestrator.settings import MethodSettings


@dataclass
class UnitPruner:
    """Removes coupled units."""

    problem: Problem
    method: MethodSettings

    def __post_init__(self) -> None:
        self.structure, self.cost = self.problem.structure, self.problem.cost
        self.criterion = self.method.scoring().build()

    def scores(self, model: nn.Module, alive: Keep, seed: int) -> Scores:
        """Scores of the living units. Errors: PlanError for one that is not finite, with its group."""
        restricted = self.structure.restrict(alive)
        shown = calibration(self.problem, self.method, model, seed)
        found: Scores = self.criterion(model, restricted, shown)
        if blocks := [group for group in self.structure.groups if group.kind == "block"]:
            measured = block_scores(model, restricted, shown)
            for group in blocks:
                found[group.units] = measured[group.units]
        thresholds.require_finite(self.structure, found, alive)
        return found

    def prune(self, model: nn.Module, alive: Keep, keep: Keep, seed: int) -> nn.Module:
        return remove(model, self.structure.restrict(alive), keep)


@dataclass
class WeightPruner:
    """Sets weights to zero: single ones, blocks or N of M; `model` is what they are counted in, `keep` its units."""

    problem: Problem
    method: MethodSettings
    model: nn.Module
    keep: Keep

    def __post_init__(self) -> None:
        assert self.method.granularity != "unit"
        self.how = Weight(self.method.granularity, self.method.shape or (1, 1))
        self.structure = weight_structure(self.problem.structure, self.keep, self.model, self.how)
        self.criterion = self.method.scoring().build()

    @cached_property
    def cost(self) -> Cost:
        return Cost(self.structure)

    @cached_property
    def names(self) -> list[str]:
        return [group.name for group in self.structure.groups]

    def elements(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """A score per weight, by tensor."""
        shown = calibration(self.problem, self.method, model, seed)
        found: dict[str, Tensor] = self.criterion.weights(model, self.names, shown)
        return found

    def scores(self, model: nn.Module, alive: Keep, seed: int) -> Scores:
        """Scores of the living units. Errors: PlanError for one that is not finite, with its tensor."""
        found = unit_scores(self.structure, self.elements(model, seed), self.how)
        thresholds.require_finite(self.structure, found, alive)
        return found

    def prune(self, model: nn.Module, alive: Keep, keep: Keep, seed: int) -> nn.Module:
        """A copy with the weights at zero; its zeros are its masks."""
        twin = copy.deepcopy(model)
        apply(twin, self.masks(model, keep, seed))
        return twin

    def masks(self, model: nn.Module, keep: Keep, seed: int) -> Masks:
        """Patterns are chosen by the scores of the moment; everything else follows from `keep`."""
        pattern = self.how.kind == "pattern" and not keep.all()
        elements = self.elements(model, seed) if pattern else dict(model.named_parameters())
        return masks_of(self.structure, keep, elements, self.how)

    def alive(self, masks: Masks) -> Keep:
        """Units that are not masked altogether; a tensor without a mask is whole."""
        keep = self.structure.full()
        for group in self.structure.groups:
            if (mask := masks.get(group.name)) is not None:
                keep[group.units] = (
                    0.0 if self.how.kind == "pattern" else shares(mask, self.how) > 0.0
                )
        return keep

    def densities(self, kept: Counts) -> dict[str, float]:
        """Share of the weights left of each tensor by the units it keeps."""
        pairs = zip(self.structure.groups, kept, strict=True)
        if self.how.kind != "pattern":
            return {group.name: int(count) / group.size for group, count in pairs}
        n, m = self.how.shape
        return {group.name: 1.0 if count else n / m for group, count in pairs}

    def shares(self, density: Mapping[str, float]) -> list[float]:
        """Share of its units each tensor keeps, the other way round; a tensor that is not named keeps all."""
        found = [density.get(group.name, 1.0) for group in self.structure.groups]
        return [float(share == 1.0) for share in found] if self.how.kind == "pattern" else found


def pruner_of(problem: Problem, method: MethodSettings) -> UnitPruner | WeightPruner:
    """The pruner of the dense model."""
    if method.granularity == "unit":
        return UnitPruner(problem, method)
    return WeightPruner(problem, method, problem.model, problem.structure.full())


def pools_of(structure: Structure, method: MethodSettings, model: nn.Module) -> Pools:
    """Groups whose units are compared with one another under the method's scope; blocks are compared with none."""
    apart = {i for i, group in enumerate(structure.groups) if group.kind in ("block", "pattern")}
    alone = [[i] for i in sorted(apart)]
    if method.scope == "local":
        return [[i] for i in range(len(structure.groups))]
    if method.scope == "global":
        ranked = [i for i in range(len(structure.groups)) if i not in apart]
        return ([ranked] if ranked else []) + alone
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    pools: dict[object, list[int]] = {}
    for place, same in enumerate(isomorphic_classes(structure)):
        for i in same:
            if (
                i not in apart
            ):  # tensors of single weights are of one size in a class, and here of one shape too
                pools.setdefault((place, shapes.get(structure.groups[i].name)), []).append(i)
    return [*pools.values(), *alone]


def comparable(structure: Structure, scores: Scores, alive: Keep, method: MethodSettings) -> Scores:
    """Scores as the scope compares them: as multiples of the group's mean where `normalize` asks for it."""
    if method.scope == "local" or not method.normalize:
        return scores
    return thresholds.normalised(structure, scores, alive)


def calibration(
    problem: Problem, method: MethodSettings, model: nn.Module, seed: int
) -> Calibration:
    """The method's calibration batches on the problem's device, each watched by its check, and the task's loss."""
    task = problem.task(model)
    count = method.calibration_batches
    batches = [
        to_device(task, batch, problem.device)
        for batch in islice(problem.data.train_batches(seed), count)
    ]

    def loss(scored: nn.Module, batch: Any) -> Tensor:
        return step_loss(task if scored is model else problem.task(scored), batch)

    return Calibration(WatchedBatches(batches, problem.check), loss, seed)
