"""What a method does to a model, one class per granularity.

A pruner scores units, then removes them or sets weights to zero. Both classes have a `structure`
and its `cost`, those of the dense model; scores and keeps are over its units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_modules.phases.watched import WatchedBatches
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.criteria import Calibration
from lightning_modules.pruning.criteria.blocks import block_scores
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.saving import by_saving
from lightning_modules.pruning.structure import Keep
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
from orchestrator.search.plans.lineage import method_key, weights_digest
from orchestrator.search.space.outline import weight_of
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import MethodSettings


@dataclass
class UnitPruner:
    """Removes coupled units."""

    lab: Lab
    method: MethodSettings

    def __post_init__(self) -> None:
        self.structure = self.lab.facts.structure
        self.cost = self.lab.facts.cost
        self.criterion = self.method.scoring().build()

    def scores(self, model: nn.Module, alive: Keep, seed: int) -> Scores:
        """Scores of the living units.

        Errors: PlanError, with the group, for one that is not finite.
        """
        if self.lab.phases.untrained and alive.all():
            return self._dense_scores(model)
        return self._scores(model, alive, seed)

    def _dense_scores(self, model: nn.Module) -> Scores:
        """Scores of the dense model, made once where every plan is cut from it."""
        method = method_key(self.method.model_dump(mode="json"))
        key = (weights_digest(model), method, self.lab.seed)
        if key not in self.lab.dense_scores:
            seed = seed_of(self.lab.seed, Stream.SCORES)
            self.lab.dense_scores[key] = self._scores(model, self.structure.full(), seed)
        return self.lab.dense_scores[key]

    def _scores(self, model: nn.Module, alive: Keep, seed: int) -> Scores:
        restricted = self.structure.restrict(alive)
        batches = calibration(self.lab, self.method, model, seed)
        scores: Scores = self.criterion(model, restricted, batches)
        blocks = [group for group in self.structure.groups if group.kind == "block"]
        if blocks:
            of_blocks = block_scores(model, restricted, batches)
            for group in blocks:
                scores[group.units] = of_blocks[group.units]
        thresholds.require_finite(self.structure, scores, alive)
        return scores

    def prune(self, model: nn.Module, alive: Keep, keep: Keep, seed: int) -> nn.Module:
        """A smaller copy, without compensation."""
        return remove(model, self.structure.restrict(alive), keep)

    def cut(
        self, model: nn.Module, alive: Keep, keep: Keep, seed: int
    ) -> tuple[nn.Module, set[str]]:
        """A smaller copy, compensated where the method asks for it.

        Also the names of the parameters that were fitted.
        """
        if not self.method.compensate or np.array_equal(alive, keep):
            return self.prune(model, alive, keep, seed), set()
        with self.lab.timed("compensation"):
            smaller, consumers = self.lab.compensator(model, alive)(keep)
        return smaller, {name for consumer in consumers for name in consumer.changed}


@dataclass
class WeightPruner:
    """Sets weights to zero: single ones, blocks or N of M.

    `model` is what they are counted in, `keep` its units.
    """

    lab: Lab
    method: MethodSettings
    model: nn.Module
    keep: Keep

    def __post_init__(self) -> None:
        self.weight = weight_of(self.method)
        dense = self.lab.facts.structure
        self.structure = weight_structure(dense, self.keep, self.model, self.weight)
        self.criterion = self.method.scoring().build()

    @cached_property
    def cost(self) -> Cost:
        return Cost(self.structure)

    @cached_property
    def names(self) -> list[str]:
        return [group.name for group in self.structure.groups]

    def elements(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """A score per weight, by tensor."""
        batches = calibration(self.lab, self.method, model, seed)
        elements: dict[str, Tensor] = self.criterion.weights(model, self.names, batches)
        return elements

    def scores(self, model: nn.Module, alive: Keep, seed: int) -> Scores:
        """Scores of the living units.

        Errors: PlanError, with the tensor, for one that is not finite.
        """
        scores = unit_scores(self.structure, self.elements(model, seed), self.weight)
        thresholds.require_finite(self.structure, scores, alive)
        return scores

    def cut(
        self, model: nn.Module, alive: Keep, keep: Keep, seed: int
    ) -> tuple[nn.Module, set[str]]:
        """As `prune`; nothing is fitted."""
        return self.prune(model, alive, keep, seed), set()

    def prune(self, model: nn.Module, alive: Keep, keep: Keep, seed: int) -> nn.Module:
        """A copy with the weights at zero; its zeros are its masks."""
        twin = copy_of(model)
        apply(twin, self.masks(model, keep, seed))
        return twin

    def masks(self, model: nn.Module, keep: Keep, seed: int) -> Masks:
        """Masks that leave the units `keep`.

        Patterns are chosen by the scores of the moment; everything else follows from `keep`.
        """
        pattern = self.weight.kind == "pattern" and not keep.all()
        elements = self.elements(model, seed) if pattern else dict(model.named_parameters())
        return masks_of(self.structure, keep, elements, self.weight)

    def alive(self, masks: Masks) -> Keep:
        """Units that are not masked altogether; a tensor without a mask is whole."""
        keep = self.structure.full()
        for group in self.structure.groups:
            mask = masks.get(group.name)
            if mask is None:
                continue
            if self.weight.kind == "pattern":
                keep[group.units] = False
            else:
                keep[group.units] = shares(mask, self.weight) > 0.0
        return keep

    def shares(self, density: Mapping[str, float]) -> list[float]:
        """Share of its units each tensor keeps, from its share of weights.

        A tensor that is not named keeps all.
        """
        weights = [density.get(group.name, 1.0) for group in self.structure.groups]
        if self.weight.kind == "pattern":
            return [float(share == 1.0) for share in weights]
        return weights


def pruner_of(lab: Lab, method: MethodSettings) -> UnitPruner | WeightPruner:
    """The pruner of the dense model."""
    if method.removes_units:
        return UnitPruner(lab, method)
    return WeightPruner(lab, method, lab.facts.model, lab.facts.structure.full())


def comparable(pruner: UnitPruner | WeightPruner, scores: Scores) -> Scores:
    """Scores of the dense model as the scope compares them.

    These are multiples of the group's mean where `normalize` asks for it.
    """
    method = pruner.method
    structure = pruner.structure
    if method.scope == "per_mac":
        return by_saving(structure, scores, pruner.lab.facts.target.parts)
    if method.scope == "local" or not method.normalize:
        return scores
    return thresholds.normalised(structure, scores, structure.full())


def calibration(lab: Lab, method: MethodSettings, model: nn.Module, seed: int) -> Calibration:
    """The method's calibration batches on the device, and the task's loss.

    The lab's check watches each batch.
    """
    task = lab.task(model)
    shown = islice(lab.data.train_batches(seed), method.calibration_batches)
    batches = [to_device(task, batch, lab.device) for batch in shown]

    def loss(scored: nn.Module, batch: Any) -> Tensor:
        return step_loss(task if scored is model else lab.task(scored), batch)

    return Calibration(WatchedBatches(batches, lab.check), loss, seed)
