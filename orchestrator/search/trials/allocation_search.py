"""How a plan's units are shared out among the groups, searched on models that are not trained.

Many allocations within the cost of one plan, its MACs or its estimated latency, are cut,
compensated and judged without labels; the best one takes the plan's place.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning

from lightning_modules.pruning.plan import Plan, Thresholds, by_group
from lightning_modules.pruning.structure import Counts
from lightning_modules.pruning.thresholds import Scores, choose, quantiles, rounded
from orchestrator.search.lab.judge import Judge, validation_judge
from orchestrator.search.lab.lab import Lab
from orchestrator.search.space.allocation import Ratios, scaled
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.search.trials.working import Working
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import MethodSettings, Settings

WIDEST = 1.0
"""Octaves by which a group's share of its units may leave that of the better first allocation."""


@dataclass(frozen=True)
class AllocationSearch:
    """Judges so many `allocations` of every plan: its own, equal ratios, and some around these."""

    judge: Judge
    allocations: int

    def __call__(self, lab: Lab, method: MethodSettings, plan: Plan, working: Working) -> Plan:
        """The plan with the allocation whose untrained model is nearest to the dense one.

        It is within the plan's cost, and has no units that the working model has not.
        """
        structure = lab.facts.structure
        pruner = UnitPruner(lab, method)
        asked = plan.counts(structure)
        with lab.timed("allocation"):
            scores = pruner.scores(working.model, working.alive, plan.seed)
            cuts = _Cuts(pruner, working, scores, plan.seed, self.judge)
            sizes = _Sizes(pruner, structure.counts(working.alive), asked)
            best = _best(cuts, sizes, self.allocations, seed_of(plan.seed, Stream.ALLOCATION))
        if (best == asked).all():
            return plan
        record = Thresholds(quantiles(structure, best), "quantile")
        return replace(plan, kept=by_group(structure, best), asked=(*plan.asked, record))


def allocation_search(settings: Settings, lab: Lab) -> AllocationSearch | None:
    """The search that the settings ask for; None where they ask for none.

    Errors: ConfigError where the task cannot compare outputs.
    """
    allocations = settings.search.allocations
    if allocations == 0:
        return None
    return AllocationSearch(validation_judge(lab, "search.allocations"), allocations)


@dataclass(frozen=True)
class _Cuts:
    """Untrained models cut from the working one, and how far they are from the dense one."""

    pruner: UnitPruner
    working: Working
    scores: Scores
    seed: int
    judge: Judge
    divergences: dict[tuple[int, ...], float] = field(default_factory=dict)

    def divergence(self, kept: Counts) -> float:
        """Of the model with these units; each is judged once."""
        key = tuple(kept.tolist())
        if key not in self.divergences:
            self.divergences[key] = self._judged(kept)
        return self.divergences[key]

    def _judged(self, kept: Counts) -> float:
        lab = self.pruner.lab
        lab.check()
        working = self.working
        keep = choose(self.pruner.structure, self.scores, working.alive, kept)
        smaller, _ = self.pruner.cut(working.model, working.alive, keep, self.seed)
        lab.recalibrate(smaller, lab.phases.finetune.recalibration_batches, self.seed)
        return self.judge(smaller)


class _Sizes:
    """Counts within the cost of a plan, each of shape (n_groups,).

    `alive` are those of the working model, `asked` those of the plan. Whole blocks, which stand
    behind all other groups, stay as the plan has them.
    """

    def __init__(self, pruner: UnitPruner, alive: Counts, asked: Counts) -> None:
        self.asked = asked
        self._pruner = pruner
        self._alive = alive
        groups = pruner.structure.groups
        self._is_block = np.array([group.kind == "block" for group in groups])
        self.names = [group.name for group in groups if group.kind != "block"]

    def evenly(self) -> Counts:
        """At equal ratios of all groups."""
        return self._within(np.ones(len(self.asked)))

    def around(self, kept: Counts, octaves: Ratios) -> Counts:
        """Of each group 2^octave as many as `kept`, scaled to the plan's cost.

        `octaves` has the shape of `names`.
        """
        factors = np.ones(len(kept))
        factors[: len(self.names)] = np.exp2(octaves)
        return self._within(factors * kept / self._pruner.structure.sizes)

    def _within(self, share: Ratios) -> Counts:
        cost = self._pruner.lab.facts.target.of
        sizes = self._pruner.structure.sizes

        def cost_of(kept: Counts) -> int:
            return cost(self._possible(kept))

        return self._possible(scaled(sizes, cost_of, cost(self.asked), share))

    def _possible(self, kept: Counts) -> Counts:
        up = rounded(self._pruner.structure, kept, self._pruner.method.rounding)
        return np.where(self._is_block, self.asked, np.minimum(up, self._alive))


def _best(cuts: _Cuts, sizes: _Sizes, allocations: int, seed: int) -> Counts:
    """The counts with the least divergence, of so many that are judged."""
    first = min([sizes.asked, sizes.evenly()], key=cuts.divergence)
    octave: BaseDistribution = FloatDistribution(-WIDEST, WIDEST)
    octaves = dict.fromkeys(sizes.names, octave)
    study = _study(seed)
    known = optuna.trial.create_trial(
        params=dict.fromkeys(sizes.names, 0.0),
        distributions=octaves,
        value=cuts.divergence(first),
    )
    study.add_trial(known)
    best = first
    for _ in range(allocations - len(cuts.divergences)):
        trial = study.ask(octaves)
        kept = sizes.around(first, np.array(list(trial.params.values())))
        study.tell(trial, cuts.divergence(kept))
        if cuts.divergence(kept) < cuts.divergence(best):
            best = kept
    return best


def _study(seed: int) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    return optuna.create_study(sampler=sampler)
