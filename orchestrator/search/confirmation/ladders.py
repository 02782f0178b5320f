"""Baselines: what an expert does by hand, at the costs of the front's models and with their finetuning budget.

Each is a ladder, large to small, every rung cut from the finetuned one before it, with distillation; they differ in how
a FLOPs target is shared out: equal ratios, random ratios, or one global ranking of all units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from lightning_modules.phases.sparse import Sparse
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.structure import Counts, Keep, Structure
from lightning_modules.pruning.thresholds import Scores
from lightning_modules.pruning.weights import zeros_of
from orchestrator.search.lab.problem import Problem, Training, seed_of
from orchestrator.search.space.allocation import Macs, lowest_level, scaled
from orchestrator.search.trials.methods import Method
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner

Name = Literal["uniform", "random", "global"]
PLACES = {"uniform": 0, "random": 1, "global": 2}


@dataclass(frozen=True)
class Rung:
    """Match `macs` for front trial `trial`, finetuned for `steps` optimizer steps in all, its ancestors' included.

    `mixed` copies of the training data were learnt beside it; None: as configured.
    """

    trial: int
    macs: int
    steps: int
    mixed: int | None = None


def steps_by_rung(rungs: Sequence[Rung], least: int) -> list[tuple[Rung, int]]:
    """Rungs large to small, with the optimizer steps that each adds: what its match has more, `least` at least."""
    spent, found = 0, []
    for rung in sorted(rungs, key=lambda rung: -rung.macs):
        steps = max(least, rung.steps - spent)
        spent += steps
        found.append((rung, steps))
    return found


def climb(
    problem: Problem, method: Method, name: Name, rungs: list[Rung]
) -> Iterator[tuple[Rung, nn.Module, Keep]]:
    """The ladder's model and dense units at each rung, large to small, after the steps its match has been finetuned.

    A ladder prunes as the method's first stage does; a hybrid method is thus compared with removal alone.
    """
    pruner = method.stages[0].pruner
    structure, cost = pruner.structure, pruner.cost
    model, alive = problem.model, structure.full()
    units_alive = problem.structure.full()
    seed = seed_of(problem.settings.seed, 5, PLACES[name])
    least = (
        0 if any(group.kind == "pattern" for group in structure.groups) else 1
    )  # whole blocks stay
    shares = np.random.default_rng(seed).uniform(0.1, 1.0, len(structure.groups))
    for place, (rung, steps) in enumerate(
        steps_by_rung(rungs, problem.settings.phases.finetune.round_steps)
    ):
        scores = pruner.scores(model, alive, seed)
        now = structure.counts(alive)
        if name == "global":
            kept = global_counts(structure, scores, alive, cost.macs, rung.macs, least)
        else:
            share = np.ones(len(now)) if name == "uniform" else shares
            kept = np.minimum(now, scaled(structure.sizes, cost.macs, rung.macs, share, least))
        if (kept < now).any():
            keep = thresholds.choose(structure, scores, alive, kept)
            model, alive = pruner.prune(model, alive, keep, seed), keep
            if isinstance(pruner, UnitPruner):
                units_alive = keep
            problem.recalibrate(model, problem.settings.phases.finetune.recalibration_batches, seed)
        masks = zeros_of(model, pruner.names) if isinstance(pruner, WeightPruner) else {}
        held = [Sparse(masks)] if masks else []
        training = Training(
            1, seed_of(seed, place), round_steps=steps, mixed=rung.mixed, callbacks=held
        )
        problem.finetune(model, training)
        yield rung, model.eval(), units_alive


def global_counts(
    structure: Structure, scores: Scores, alive: Keep, macs: Macs, target: int, least: int = 1
) -> Counts:
    """Units kept per group when all are ranked in one list by multiples of their group's mean score."""
    if not alive.any():
        return structure.counts(alive)
    relative = thresholds.normalised(structure, scores, alive)
    living = [relative[group.units][alive[group.units]] for group in structure.groups]

    def counts(level: float) -> Counts:
        return np.array([max(least, int((part >= level).sum())) for part in living], dtype=np.int64)

    least_level, most_level = (
        float(relative[alive].min()) - 1.0,
        float(np.nextafter(relative[alive].max(), np.inf)),
    )
    return counts(lowest_level(counts, macs, target, least_level, most_level))
