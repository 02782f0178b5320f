"""What a space may know of the problem, and what it makes of a trial's parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution

from lightning_modules.pruning.plan import Plan, Rule, Thresholds, by_group
from lightning_modules.pruning.structure import Counts, Structure
from lightning_modules.pruning.thresholds import Pools, Scores, counts, rounded
from lightning_modules.pruning.weights import Weight, shares_left
from orchestrator.search.space.allocation import Macs, Sensitivity
from orchestrator.settings.targets import FLOPS_TARGET

Params = dict[str, Any]


@dataclass(frozen=True)
class SearchContext:
    """One method on one model: its groups, costs, sensitivity, rule and dense scores.

    The scores are as the method's scope sees them. `macs` is what targets are ratios of: MACs,
    effective ones where groups are single weights, or nanoseconds of the estimated latency.
    `target` is what the ratio is called among a plan's parameters. `weight` says how single weights
    are counted, None where units are removed. `pools` are the groups that share a threshold, None
    where each has its own. `then` is the context of the second stage of a hybrid method. A target
    of the chain keeps ratio^`depth` of the blocks. `largest_ratio` is that of the bounds,
    `least_ratio` the smallest one that a plan can have, 0 where that is not known. `allocations`
    are those of a preview, each within the one before, which stand in for equal ratios; shape
    (n_allocations, n_groups).
    """

    structure: Structure
    macs: Macs
    dense_macs: int
    rule: Rule
    scores: Scores
    sensitivity: Sensitivity | None = None
    target: str = FLOPS_TARGET
    largest_ratio: float = 1.0
    least_ratio: float = 0.0
    pools: Pools | None = None
    round_to: int = 1
    method: str = ""
    then: SearchContext | None = None
    depth: float = 0.0
    weight: Weight | None = None
    allocations: Counts | None = None

    @property
    def blocks(self) -> list[int]:
        """Indices of groups that are whole blocks, least important first.

        Blocks stand behind all other groups.
        """
        groups = self.structure.groups
        blocks = [index for index, group in enumerate(groups) if group.kind == "block"]
        return sorted(blocks, key=lambda index: float(self.scores[groups[index].start]))

    @property
    def widths(self) -> int:
        """Number of groups that are not whole blocks; the first ones."""
        return len(self.structure.groups) - len(self.blocks)

    @property
    def width_names(self) -> list[str]:
        """Names of the groups that are not whole blocks."""
        return [group.name for group in self.structure.groups[: self.widths]]

    def without_blocks(self, dropped: int) -> Counts:
        """Of each block group 1, or 0 for the `dropped` least important ones; shape (n_blocks,)."""
        gone = set(self.blocks[:dropped])
        kept = [int(index not in gone) for index in sorted(self.blocks)]
        return np.array(kept, dtype=np.int64)

    def round(self, kept: Counts) -> Counts:
        """Counts as the method rounds them for the hardware; blocks are not rounded."""
        return rounded(self.structure, kept, self.round_to)

    def counts(self, thresholds: Thresholds, pooled: bool = False) -> Counts:
        """Units that thresholds leave of each group by the dense scores, rounded for the hardware.

        `pooled`: the groups that the method's scope compares share a threshold. Errors: PlanError,
        as `thresholds.counts`.
        """
        kept = counts(
            self.structure,
            self.scores,
            self.structure.full(),
            thresholds.levels,
            thresholds.rule,
            self.pools if pooled else None,
        )
        return self.round(kept)

    def pruned(self, plan: Plan, kept: Counts, asked: Thresholds) -> Plan:
        """The plan with these counts of units or of single weights.

        `asked` are the thresholds that the counts follow from.
        """
        record = (*plan.asked, asked)
        if self.weight is None:
            return replace(plan, kept=by_group(self.structure, kept), asked=record)
        return replace(plan, density=shares_left(self.structure, kept, self.weight), asked=record)


class Space(Protocol):
    """What may vary, and the plan of a trial's parameters.

    `chain` gives the parameters of one target of the chain, within the same distributions.
    `propose` makes the plan of a trial's parameters, without parent and seed; `unpruned` makes the
    same plan before anything is removed: its method, its timing and what else does not depend on
    scores. Both errors: PlanError for parameters that are no plan, such as thresholds that empty a
    group. `levels` is how many values every continuous dimension is cut into by whoever asks; None:
    it stays continuous.
    """

    @property
    def levels(self) -> int | None: ...

    @property
    def needs_profile(self) -> bool: ...

    def distributions(self, context: SearchContext) -> dict[str, BaseDistribution]: ...

    def chain(self, context: SearchContext, ratio: float) -> Params: ...

    def unpruned(self, context: SearchContext, params: Params) -> Plan: ...

    def propose(self, context: SearchContext, params: Params) -> Plan: ...
