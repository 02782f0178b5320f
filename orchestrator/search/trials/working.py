"""A trial at work: the model as it is at the moment, and the stages that prune it, one step at a
time.
"""

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
from lightning_modules.pruning.optimizer import slice_state
from lightning_modules.pruning.plan import Timing
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.schedules import SCHEDULES
from lightning_modules.pruning.structure import Counts, Keep
from lightning_modules.pruning.weights import Masks, apply, zeros_of
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner


@dataclass
class Working:
    """`alive` are the dense units `model` has, `masks` its pruned weights, `optimizer` a state to
    be carried along.
    """

    model: nn.Module
    alive: Keep
    masks: Masks = field(default_factory=dict)
    optimizer: Any = None

    def copy(self) -> Working:
        """One that further work does not touch."""
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        return Working(
            copy.deepcopy(self.model), self.alive.copy(), masks, copy.deepcopy(self.optimizer)
        )

    def restart(self, dense: nn.Module, alive: Keep, structure: Any) -> None:
        """The same units and masks with the weights of another dense model; the optimizer begins
        anew.
        """
        self.model, self.optimizer = remove(dense, structure, alive), None
        apply(self.model, self.masks)


@dataclass(frozen=True)
class Event:
    """A pruning step to `fraction` of the way, then `rounds` rounds of finetuning; a `hard` one
    ends softness.
    """

    fraction: float
    rounds: int
    hard: bool


class Stage(Protocol):
    """`prune` takes the working model to a fraction of the way; `callbacks` go with the finetuning
    that follows.
    """

    soft: bool

    def prune(self, working: Working, event: Event, seed: int) -> None: ...

    def callbacks(self, working: Working, event: Event | None, seed: int) -> list[Callback]: ...

    def shown(self, working: Working) -> AbstractContextManager[None]:
        """The working model as it is evaluated: weights that are trained on out of sight are at
        zero inside.
        """
        ...


def events(timing: Timing, soft: bool) -> tuple[int, list[Event]]:
    """Units of finetuning before the first step, and the steps; a soft stage ends with a hard
    one.
    """
    fractions = [
        SCHEDULES[timing.schedule]((step + 1) / timing.steps) for step in range(timing.steps)
    ]
    moments, hard, total = timing.moments(), [not soft] * timing.steps, timing.total
    if soft:
        total = max(2, total)
        moments, fractions, hard = (
            [*(min(m, total - 2) for m in moments), total - 1],
            [*fractions, 1.0],
            [*hard, True],
        )
    rounds = [after - before for before, after in zip(moments, [*moments[1:], total], strict=True)]
    return moments[0], [Event(f, u, h) for f, u, h in zip(fractions, rounds, hard, strict=True)]


class UnitStage:
    """Removes units down to `final`; soft: zeroes them, chosen anew each time, and removes them in
    the end.
    """

    def __init__(self, pruner: UnitPruner, working: Working, final: Counts) -> None:
        self.pruner, self.structure, self.final = pruner, pruner.structure, final
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
        if working.optimizer is not None:
            working.optimizer = slice_state(working.optimizer, working.model, restricted, keep)
        working.model, working.alive = remove(working.model, restricted, keep), keep
        working.masks = zeros_of(working.model, working.masks)

    def callbacks(self, working: Working, event: Event | None, seed: int) -> list[Callback]:
        keep = self._zeroed
        if keep is None:
            return []
        restricted = self.structure.restrict(working.alive)
        return [Zeroed(lambda: unit_masks.zero(working.model, restricted, keep))]

    def shown(self, working: Working) -> AbstractContextManager[None]:
        return nullcontext()  # soft units are zeroed in place


class WeightStage:
    """Sets weights to zero until each tensor keeps its `shares` of them; soft ones are trained on
    under the mask.
    """

    def __init__(self, pruner: WeightPruner, working: Working, shares: Sequence[float]) -> None:
        self.pruner, self.structure = pruner, pruner.structure
        sizes = self.structure.sizes
        least = self.structure.least
        self.final = np.maximum(np.rint(np.asarray(shares) * sizes).astype(np.int64), least)
        self.begin = pruner.alive(working.masks)
        self.before = self.structure.counts(self.begin)
        self.final = np.minimum(self.final, self.before)
        recipe = pruner.method.regrowth
        self.regrowth = None if recipe is None else recipe.build()
        self.soft = pruner.method.soft or (self.regrowth is not None and self.regrowth.dense)

    def prune(self, working: Working, event: Event, seed: int) -> None:
        now = thresholds.at_fraction(self.before, self.final, event.fraction)
        alive = self.begin if self.soft else self.pruner.alive(working.masks)
        now = np.minimum(now, self.structure.counts(alive))
        scores = self.pruner.scores(working.model, alive, seed)
        if (
            self.soft and event.hard
        ):  # what the network was trained under stays; the rest has drifted out of sight
            scores = np.where(
                self.pruner.alive(working.masks), scores + np.ptp(scores) + 1.0, scores
            )
        keep = thresholds.choose(self.structure, scores, alive, now)
        found = self.pruner.masks(working.model, keep, seed)
        # a pattern that is there stays as it is: its zeros would be chosen again only by chance of
        # a tie
        working.masks = {
            **found,
            **({} if self.soft else {n: m for n, m in working.masks.items() if self._pattern(n)}),
        }
        if event.hard:
            apply(working.model, working.masks)

    def callbacks(self, working: Working, event: Event | None, seed: int) -> list[Callback]:
        soft = self.soft and event is not None and not event.hard
        moving = None if self.soft and not soft else self.regrowth
        return [Sparse(working.masks, moving, soft, seed)] if working.masks else []

    @contextmanager
    def shown(self, working: Working) -> Iterator[None]:
        dense = {
            name: p.detach().clone()
            for name, p in working.model.named_parameters()
            if name in working.masks
        }
        apply(working.model, working.masks)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in dense.items():
                    working.model.get_parameter(name).copy_(weight)

    def _pattern(self, name: str) -> bool:
        return self.pruner.how.kind == "pattern"
