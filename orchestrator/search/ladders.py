"""Baselines: what an expert does by hand, at the costs of the front's models and with their finetuning budget.

Each is a ladder, large to small, every rung cut from the finetuned one before it, with distillation; they differ in how
a FLOPs target is shared out: equal ratios, random ratios, or one global ranking of all units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from lightning_modules.pruning import thresholds
from lightning_modules.pruning.criteria import Criterion
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts, Keep, Structure
from lightning_modules.pruning.thresholds import Scores
from orchestrator.search.allocation import Macs, lowest_level, scaled
from orchestrator.search.problem import Problem, seed_of

Name = Literal["uniform", "random", "global"]
PLACES = {"uniform": 0, "random": 1, "global": 2}


@dataclass(frozen=True)
class Rung:
    """Match `macs` for front trial `trial`, finetuned for `units` units in all, its ancestors' included."""

    trial: int
    macs: int
    units: int


def climb(
    problem: Problem, criterion: Criterion, name: Name, rungs: list[Rung]
) -> Iterator[tuple[Rung, nn.Module, Counts]]:
    """The ladder's model at each rung, large to small, after the finetuning units that its match has had."""
    structure, model, alive, spent = problem.structure, problem.model, problem.structure.full(), 0
    seed = seed_of(problem.settings.seed, 5, PLACES[name])
    shares = np.random.default_rng(seed).uniform(0.1, 1.0, len(structure.groups))
    for place, rung in enumerate(sorted(rungs, key=lambda rung: -rung.macs)):
        scores = problem.score(criterion, model, structure.restrict(alive), seed)
        now = structure.counts(alive)
        if name == "global":
            kept = global_counts(structure, scores, alive, problem.cost.macs, rung.macs)
        else:
            share = np.ones(len(now)) if name == "uniform" else shares
            kept = np.minimum(now, scaled(structure.sizes, problem.cost.macs, rung.macs, share))
        if (kept < now).any():
            keep = thresholds.choose(structure, scores, alive, kept)
            model, alive = remove(model, structure.restrict(alive), keep), keep
            problem.recalibrate(model, problem.settings.phases.finetune.recalibration_batches, seed)
        units = max(1, rung.units - spent)
        problem.finetune(model, units, seed_of(seed, place))
        spent += units
        yield rung, model.eval(), structure.counts(alive)


def global_counts(structure: Structure, scores: Scores, alive: Keep, macs: Macs, target: int) -> Counts:
    """Units kept per group when all are ranked in one list by multiples of their group's mean score; at least one."""
    relative = [scores[group.units][alive[group.units]] for group in structure.groups]
    relative = [living / living.mean() if living.mean() > 0 else living for living in relative]

    def counts(level: float) -> Counts:
        return np.array([max(1, int((living >= level).sum())) for living in relative], dtype=np.int64)

    highest = float(max(living.max() for living in relative))
    return counts(lowest_level(counts, macs, target, 0.0, highest))
