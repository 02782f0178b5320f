"""Which allocation of the same cost to train: the one whose outputs, untrained, stay nearest to the dense model's.

A random walk over octaves per group around what was proposed. Every candidate has the proposal's cost, is cut from the
same parent, has its norms recalibrated, and is judged by KL(dense || pruned) on training data: a few forward passes,
where training it would take hundreds of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.phases.recalibration import recalibrate
from lightning_modules.phases.watched import WatchedBatches
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts
from orchestrator.search.allocation import scaled
from orchestrator.search.problem import seed_of
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.search.trials.working import Working

Octaves = npt.NDArray[np.float64]
"""By how much each group keeps more than was proposed, before the cost is made the same again; shape (n_groups,)."""
WIDEST = 2.0
"""Octaves: no group departs further."""


@dataclass(frozen=True)
class Screened:
    """The counts chosen among `tried`, and KL (nats) of the proposal and of the choice; `octaves` are for children."""

    kept: Counts
    octaves: Octaves
    proposed: float
    chosen: float
    tried: int

    def to_json(self) -> dict[str, Any]:
        octaves = [round(float(octave), 4) for octave in self.octaves]
        return {"octaves": octaves, "proposed": self.proposed, "chosen": self.chosen, "tried": self.tried}


def candidates(share: float, steps: int, batches: int) -> int:
    """How many candidates `share` of the time of `steps` optimizer steps pays for.

    A step is about three forward passes (backward counts for two), a candidate two for each of its batches.
    """
    return int(share * steps * 3 / (2 * batches))


def screen(
    pruner: UnitPruner,
    working: Working,
    proposed: Counts,
    inherited: Sequence[float],
    tries: int,
    seed: int,
    allowed: Callable[[Counts], bool] = lambda kept: True,
) -> Screened:
    """The best of `tries` allocations at the cost of `proposed`, none with more of a group than `working` has.

    `inherited` are the parent's octaves, none for the dense model, from which the walk begins where they do better than
    none. Whole blocks stay as they were proposed. `allowed` refuses counts outside a bound; those of the proposal are
    within all.
    """
    how = pruner.problem.settings.search.screening
    with pruner.problem.timed("screening"):
        judge = _Judge(pruner, working, proposed, seed, how.batches)
        best, kept = np.zeros(len(proposed)), judge.counts(np.zeros(len(proposed)))
        if not allowed(kept):  # where the parent has less than was proposed, other groups have got more
            kept = np.minimum(proposed, judge.now)
        least = first = judge(kept)
        rng = np.random.default_rng(seed_of(seed, 12))
        for number in range(tries):
            octaves = np.array(inherited) if number == 0 and any(inherited) else _step(best, how.octaves, number, rng)
            found = judge.counts(octaves)
            if (found != kept).any() and (loss := judge(found)) < least and allowed(found):
                best, kept, least = octaves, found, loss
    return Screened(kept, best, first, least, tries)


def _step(best: Octaves, width: float, number: int, rng: np.random.Generator) -> Octaves:
    """From the best so far, half of the groups by a wide or a narrow step in turn."""
    step = rng.normal(0.0, width if number % 2 else 0.5 * width, len(best))
    octaves = best + step * (rng.random(len(best)) < 0.5)
    clipped: Octaves = np.clip(octaves - octaves.mean(), -WIDEST, WIDEST)
    return clipped


class _Judge:
    """Counts of the same cost from octaves, and how far a model cut to counts is from the dense outputs."""

    def __init__(self, pruner: UnitPruner, working: Working, proposed: Counts, seed: int, batches: int) -> None:
        self.problem = problem = pruner.problem
        self.pruner, self.working, self.proposed = pruner, working, proposed
        self.structure = problem.structure
        self.now = self.structure.counts(working.alive)
        step = pruner.method.round_to
        whole = (self.now == self.structure.sizes) | (self.now < step)
        self.most = np.where(whole, self.now, self.now - self.now % step)  # a guard may have left an odd width
        self.target = problem.cost.macs(proposed)
        self.blocks = np.array([group.kind == "block" for group in self.structure.groups])
        shown = islice(problem.data.train_batches(seed_of(seed, 11)), batches)
        self.batches = WatchedBatches(shown, problem.check)  # by every candidate
        self.scores = pruner.scores(working.model, working.alive, seed)
        self.dense = self._log_probabilities(problem.model)

    def counts(self, octaves: Octaves) -> Counts:
        """The most that keeps the proposal's cost, the groups in the proportions that the octaves give."""
        sizes, share = self.structure.sizes, self.proposed / self.structure.sizes

        def kept(found: Counts) -> Counts:
            wide = np.minimum(thresholds.rounded(self.structure, found, self.pruner.method.round_to), self.most)
            return np.where(self.blocks, np.minimum(self.proposed, self.now), wide)

        found = scaled(sizes, lambda counts: self.problem.cost.macs(kept(counts)), self.target, share * 2.0**octaves)
        return kept(np.maximum(found, self.structure.least))

    def __call__(self, kept: Counts) -> float:
        working = self.working
        keep = thresholds.choose(self.structure, self.scores, working.alive, kept)
        model = remove(working.model, self.structure.restrict(working.alive), keep)
        recalibrate(model, self.batches, len(self.batches), self.problem.device)
        pruned = self._log_probabilities(model)
        return float(F.kl_div(pruned, self.dense, reduction="batchmean", log_target=True))

    @torch.no_grad()
    def _log_probabilities(self, model: nn.Module) -> Tensor:
        model.eval()
        return torch.cat([F.log_softmax(model(batch[0].to(self.problem.device)), 1) for batch in self.batches])
