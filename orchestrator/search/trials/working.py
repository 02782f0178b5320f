"""A trial at work: its current model, and the stages that prune it, one step at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from pytorch_lightning import Callback
from torch import nn

from lightning_modules.phases.sparse import Sparse, Zeroed
from lightning_modules.pruning import masks as unit_masks
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.clone import copied
from lightning_modules.pruning.optimizer import slice_state
from lightning_modules.pruning.plan import Timing
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.schedules import SCHEDULES
from lightning_modules.pruning.structure import Counts, Keep
from lightning_modules.pruning.weights import Masks, apply, zeros_of
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner


@dataclass
class Working:
    """The model of a trial, as it is at the moment.

    `alive` are the dense units that `model` has, `masks` its pruned weights, `optimizer` a state to
    be carried along.
    """

    model: nn.Module
    alive: Keep
    masks: Masks = field(default_factory=dict)
    optimizer: Any = None

    def copy(self) -> Working:
        """One that further work does not touch."""
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        model = copied(self.model)
        return Working(model, self.alive.copy(), masks, copy.deepcopy(self.optimizer))

    def restart(self, dense: nn.Module, alive: Keep, structure: Any) -> None:
        """Takes the weights of another dense model, with the same units and masks.

        The optimizer begins anew.
        """
        self.model = remove(dense, structure, alive)
        self.optimizer = None
        apply(self.model, self.masks)


@dataclass(frozen=True)
class Event:
    """A pruning step to `fraction` of the way, then `rounds` rounds of finetuning.

    A `hard` one ends softness.
    """

    fraction: float
    rounds: int
    hard: bool


class Stage(Protocol):
    """A stage of a method at work.

    `prune` takes the working model to a fraction of the way; `callbacks` go with the finetuning
    that follows.
    """

    soft: bool

    def prune(self, working: Working, event: Event, seed: int) -> None: ...

    def callbacks(self, working: Working, event: Event | None, seed: int) -> list[Callback]: ...

    def shown(self, working: Working) -> AbstractContextManager[None]:
        """Shows the working model as it is evaluated.

        Weights that are trained on under the mask are at zero inside the `with` block.
        """
        ...


def events(timing: Timing, soft: bool) -> tuple[int, list[Event]]:
    """Rounds of finetuning before the first step, and the steps.

    A soft stage ends with a hard step.
    """
    schedule = SCHEDULES[timing.schedule]
    fractions = [schedule((step + 1) / timing.steps) for step in range(timing.steps)]
    moments = timing.moments()
    hard = [not soft] * timing.steps
    total = timing.total
    if soft:
        total = max(2, total)
        moments = [*(min(moment, total - 2) for moment in moments), total - 1]
        fractions.append(1.0)
        hard.append(True)
    ends = [*moments[1:], total]
    steps = []
    for index, moment in enumerate(moments):
        steps.append(Event(fractions[index], ends[index] - moment, hard[index]))
    return moments[0], steps


class UnitStage:
    """Removes units down to `final`.

    Soft: units are zeroed, chosen anew each time, and removed in the end.
    """

    def __init__(self, pruner: UnitPruner, working: Working, final: Counts) -> None:
        self.pruner = pruner
        self.structure = pruner.structure
        self.final = final
        self.begin = working.alive
        self.before = self.structure.counts(self.begin)
        self.soft = pruner.method.soft
        self._zeroed: Keep | None = None

    def staying(self, working: Working, seed: int) -> Keep:
        """The units that would stay if all were decided now."""
        scores = self.pruner.scores(working.model, working.alive, seed)
        return thresholds.choose(self.structure, scores, working.alive, self.final)

    def prune(self, working: Working, event: Event, seed: int) -> None:
        wanted = thresholds.at_fraction(self.before, self.final, event.fraction)
        wanted = np.minimum(wanted, self.structure.counts(working.alive))
        scores = self.pruner.scores(working.model, working.alive, seed)
        keep = thresholds.choose(self.structure, scores, working.alive, wanted)
        restricted = self.structure.restrict(working.alive)
        self._zeroed = None if event.hard else keep
        if not event.hard:
            unit_masks.zero(working.model, restricted, keep)
            return
        smaller, fitted = self.pruner.cut(working.model, working.alive, keep, seed)
        if working.optimizer is not None:
            state = slice_state(working.optimizer, working.model, restricted, keep)
            working.optimizer = {name: s for name, s in state.items() if name not in fitted}
        working.model = smaller
        working.alive = keep
        working.masks = zeros_of(working.model, working.masks)

    def callbacks(self, working: Working, event: Event | None, seed: int) -> list[Callback]:
        keep = self._zeroed
        if keep is None:
            return []
        restricted = self.structure.restrict(working.alive)
        return [Zeroed(lambda: unit_masks.zero(working.model, restricted, keep))]

    def shown(self, working: Working) -> AbstractContextManager[None]:
        # soft units are zeroed in place
        return nullcontext()


class WeightStage:
    """Sets weights to zero until each tensor keeps its `shares` of them.

    Soft: they are trained on under the mask.
    """

    def __init__(self, pruner: WeightPruner, working: Working, shares: Sequence[float]) -> None:
        self.pruner = pruner
        self.structure = pruner.structure
        self.begin = pruner.alive(working.masks)
        self.before = self.structure.counts(self.begin)
        wanted = np.rint(np.asarray(shares) * self.structure.sizes).astype(np.int64)
        self.final = np.minimum(np.maximum(wanted, self.structure.least), self.before)
        recipe = pruner.method.regrowth
        self.regrowth = None if recipe is None else recipe.build()
        trained_under_mask = self.regrowth is not None and self.regrowth.dense
        self.soft = pruner.method.soft or trained_under_mask

    def prune(self, working: Working, event: Event, seed: int) -> None:
        wanted = thresholds.at_fraction(self.before, self.final, event.fraction)
        trained = self.pruner.alive(working.masks)
        alive = self.begin if self.soft else trained
        wanted = np.minimum(wanted, self.structure.counts(alive))
        scores = self.pruner.scores(working.model, alive, seed)
        if self.soft and event.hard:
            # Keep the mask used in training: masked weights were still updated, but their values
            # never affected the output.
            scores = np.where(trained, scores + np.ptp(scores) + 1.0, scores)
        keep = thresholds.choose(self.structure, scores, alive, wanted)
        masks = self.pruner.masks(working.model, keep, seed)
        if not self.soft and self.pruner.weight.kind == "pattern":
            # Keep existing N:M masks: all their pruned weights score 0, so that another ranking
            # would break ties arbitrarily.
            masks = {**masks, **working.masks}
        working.masks = masks
        if event.hard:
            apply(working.model, working.masks)

    def callbacks(self, working: Working, event: Event | None, seed: int) -> list[Callback]:
        if not working.masks:
            return []
        soft = self.soft and event is not None and not event.hard
        moving = self.regrowth if soft or not self.soft else None
        return [Sparse(working.masks, moving, soft, seed)]

    @contextmanager
    def shown(self, working: Working) -> Iterator[None]:
        dense = {}
        for name, weight in working.model.named_parameters():
            if name in working.masks:
                dense[name] = weight.detach().clone()
        apply(working.model, working.masks)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, values in dense.items():
                    working.model.get_parameter(name).copy_(values)
