"""What a method does to a model, one class per granularity: score units, then remove them or set
weights to zero.

Both have a `structure` and its `cost`, those of the dense model; scores and keeps are over its
units.
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
from lightning_modules.pruning.structure import Keep, Structure
from lightning_modules.pruning.thresholds import Scores
from lightning_modules.pruning.weights import (
    Masks,
    apply,
    masks_of,
    shares,
    unit_scores,
    weight_structure,
)
from lightning_modules.tasks.contract import step_loss, to_device
from orchestrator.search.lab.lab import Lab
from orchestrator.search.space.outline import weight_of
from orchestrator.settings import MethodSettings


@dataclass
class UnitPruner:
    """Removes coupled units."""

    lab: Lab
    method: MethodSettings

    def __post_init__(self) -> None:
        self.structure, self.cost = self.lab.facts.structure, self.lab.facts.cost
        self.criterion = self.method.scoring().build()

    def scores(self, model: nn.Module, alive: Keep, seed: int) -> Scores:
        """Scores of the living units. Errors: PlanError for one that is not finite, with its
        group.
        """
        restricted = self.structure.restrict(alive)
        shown = calibration(self.lab, self.method, model, seed)
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
    """Sets weights to zero: single ones, blocks or N of M; `model` is what they are counted in,
    `keep` its units.
    """

    lab: Lab
    method: MethodSettings
    model: nn.Module
    keep: Keep

    def __post_init__(self) -> None:
        self.how = weight_of(self.method)
        self.structure = weight_structure(self.lab.facts.structure, self.keep, self.model, self.how)
        self.criterion = self.method.scoring().build()

    @cached_property
    def cost(self) -> Cost:
        return Cost(self.structure)

    @cached_property
    def names(self) -> list[str]:
        return [group.name for group in self.structure.groups]

    def elements(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """A score per weight, by tensor."""
        shown = calibration(self.lab, self.method, model, seed)
        found: dict[str, Tensor] = self.criterion.weights(model, self.names, shown)
        return found

    def scores(self, model: nn.Module, alive: Keep, seed: int) -> Scores:
        """Scores of the living units. Errors: PlanError for one that is not finite, with its
        tensor.
        """
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

    def shares(self, density: Mapping[str, float]) -> list[float]:
        """Share of its units each tensor keeps, from the share of weights; a tensor that is not
        named keeps all.
        """
        found = [density.get(group.name, 1.0) for group in self.structure.groups]
        return [float(share == 1.0) for share in found] if self.how.kind == "pattern" else found


def pruner_of(lab: Lab, method: MethodSettings) -> UnitPruner | WeightPruner:
    """The pruner of the dense model."""
    if method.removes_units:
        return UnitPruner(lab, method)
    return WeightPruner(lab, method, lab.facts.model, lab.facts.structure.full())


def comparable(structure: Structure, scores: Scores, alive: Keep, method: MethodSettings) -> Scores:
    """Scores as the scope compares them: as multiples of the group's mean where `normalize` asks
    for it.
    """
    if method.scope == "local" or not method.normalize:
        return scores
    return thresholds.normalised(structure, scores, alive)


def calibration(lab: Lab, method: MethodSettings, model: nn.Module, seed: int) -> Calibration:
    """The method's calibration batches on the device, each watched by the lab's check, and the
    task's loss.
    """
    task = lab.task(model)
    batches = [
        to_device(task, batch, lab.device)
        for batch in islice(lab.data.train_batches(seed), method.calibration_batches)
    ]

    def loss(scored: nn.Module, batch: Any) -> Tensor:
        return step_loss(task if scored is model else lab.task(scored), batch)

    return Calibration(WatchedBatches(batches, lab.check), loss, seed)
