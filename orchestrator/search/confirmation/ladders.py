"""Baselines: what an expert does by hand, at the costs of the front's models.

Each baseline has the finetuning budget of those models. It is a ladder, large to small: every model
is cut from the finetuned one before it, and is finetuned with distillation. Ladders differ in how a
FLOPs target is shared out: equal ratios, random ratios, or one global ranking of all units. A plain
one has equal ratios, too, and is not compensated where the method is.
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
from orchestrator.search.lab.lab import Lab, Training
from orchestrator.search.space.allocation import Macs, lowest_level, scaled
from orchestrator.search.trials.methods import PreparedMethod
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner
from orchestrator.seeds import Stream, seed_of

Name = Literal["uniform", "random", "global", "plain"]
PLACES = {"uniform": 0, "random": 1, "global": 2, "plain": 3}
"""A number of each ladder, for its seed."""


@dataclass(frozen=True)
class LadderStep:
    """A model of a ladder: it has the `macs` of front trial `trial`, and its `steps` of finetuning.

    `steps` are optimizer steps in all, those of the trial's ancestors included. `mixed` copies of
    the training data were learnt beside it; None: as configured.
    """

    trial: int
    macs: int
    steps: int
    mixed: int | None = None


def with_training_steps(ladder: Sequence[LadderStep], least: int) -> list[tuple[LadderStep, int]]:
    """The steps large to small, each with the optimizer steps that its model adds.

    It adds what its match has more than the models before it, `least` at least.
    """
    spent = 0
    result = []
    for step in sorted(ladder, key=lambda step: -step.macs):
        added = max(least, step.steps - spent)
        spent += added
        result.append((step, added))
    return result


class Climber:
    """The model of a ladder, which gets smaller and is finetuned step by step.

    It prunes as the first stage of the method does. A hybrid method is thus compared with removal
    alone.
    """

    def __init__(self, lab: Lab, method: PreparedMethod, name: Name) -> None:
        self.lab = lab
        self.name = name
        self.pruner = method.stages[0].pruner
        self.structure = self.pruner.structure
        self.model = lab.facts.model
        self.alive = self.structure.full()
        self.units_alive = lab.facts.structure.full()
        self.seed = seed_of(lab.seed, Stream.BASELINE, PLACES[name])
        kinds = [group.kind for group in self.structure.groups]
        # at least 1, so whole blocks stay; a tensor without a pattern counts 0
        self.least = 0 if "pattern" in kinds else 1
        draw = np.random.default_rng(self.seed)
        self.random_shares = draw.uniform(0.1, 1.0, len(self.structure.groups))

    def prune(self, macs: int) -> None:
        """Prune down to these MACs; where nothing is finetuned, from the dense model each time."""
        finetune = self.lab.phases.finetune
        if self.lab.phases.untrained:
            self.model = self.lab.facts.model
            self.alive = self.structure.full()
        scores = self.pruner.scores(self.model, self.alive, self.seed)
        now = self.structure.counts(self.alive)
        kept = self._kept(scores, now, macs)
        if not (kept < now).any():
            return
        keep = thresholds.choose(self.structure, scores, self.alive, kept)
        if self.name == "plain":
            self.model = self.pruner.prune(self.model, self.alive, keep, self.seed)
        else:
            self.model, _ = self.pruner.cut(self.model, self.alive, keep, self.seed)
        self.alive = keep
        if isinstance(self.pruner, UnitPruner):
            self.units_alive = keep
        self.lab.recalibrate(self.model, finetune.recalibration_batches, self.seed)

    def _kept(self, scores: Scores, now: Counts, macs: int) -> Counts:
        structure = self.structure
        macs_of = self.pruner.cost.macs
        if self.name == "global":
            return global_counts(structure, scores, self.alive, macs_of, macs, self.least)
        share = self.random_shares if self.name == "random" else np.ones(len(now))
        kept = scaled(structure.sizes, macs_of, macs, share, self.least)
        return np.minimum(now, kept)

    def finetune(self, index: int, steps: int, mixed: int | None) -> None:
        masks = {}
        if isinstance(self.pruner, WeightPruner):
            masks = zeros_of(self.model, self.pruner.names)
        training = Training(
            1,
            seed_of(self.seed, index),
            round_steps=steps,
            mixed=mixed,
            callbacks=[Sparse(masks)] if masks else [],
        )
        self.lab.finetune(self.model, training)


def climb(
    lab: Lab, method: PreparedMethod, name: Name, ladder: Sequence[LadderStep]
) -> Iterator[tuple[LadderStep, nn.Module, Keep]]:
    """The ladder's models with their dense units, large to small.

    Each is finetuned as long as its match was.
    """
    climber = Climber(lab, method, name)
    usual = lab.phases.finetune.round_steps
    for index, (step, training_steps) in enumerate(with_training_steps(ladder, usual)):
        climber.prune(step.macs)
        climber.finetune(index, training_steps, step.mixed)
        yield step, climber.model.eval(), climber.units_alive


def global_counts(
    structure: Structure, scores: Scores, alive: Keep, macs: Macs, target: int, least: int = 1
) -> Counts:
    """Units kept per group when all are ranked in one list.

    They are ranked by multiples of their group's mean score.
    """
    if not alive.any():
        return structure.counts(alive)
    relative = thresholds.normalised(structure, scores, alive)
    living = [relative[group.units][alive[group.units]] for group in structure.groups]

    def counts(level: float) -> Counts:
        kept = [max(least, int((part >= level).sum())) for part in living]
        return np.array(kept, dtype=np.int64)

    least_level = float(relative[alive].min()) - 1.0
    most_level = float(np.nextafter(relative[alive].max(), np.inf))
    level = lowest_level(counts, macs, target, least_level, most_level)
    return counts(level)
