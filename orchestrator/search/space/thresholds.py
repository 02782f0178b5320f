"""Spaces of thresholds themselves: one per pool of groups, one for all, or a pattern per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.plan import Plan, Thresholds
from lightning_modules.pruning.structure import Counts
from lightning_modules.pruning.thresholds import counts
from orchestrator.search.space.allocation import lowest_level
from orchestrator.search.space.contract import Params, SearchContext
from orchestrator.search.space.recovery import Recovery, block_dimension, block_first


@dataclass(frozen=True)
class PerGroup(Recovery):
    """One independent threshold per group, or per pool of groups that the scope compares.

    Thresholds are on the scale of the method's rule.
    """

    low: float = 0.0
    high: float = 0.95
    needs_profile: bool = False

    def distributions(self, context: SearchContext) -> dict[str, BaseDistribution]:
        dimensions: dict[str, BaseDistribution] = {}
        for name in _pools(context):
            dimensions[f"threshold.{name}"] = FloatDistribution(self.low, self.high)
        return {**dimensions, **block_dimension(context), **self.recovery()}

    def chain(self, context: SearchContext, ratio: float) -> Params:
        blocks = block_first(context, ratio)
        level = _uniform_threshold(context, ratio, blocks, self.low, self.high)
        thresholds = {f"threshold.{name}": level for name in _pools(context)}
        return {**thresholds, **blocks, **self.first()}

    def propose(self, context: SearchContext, params: Params) -> Plan:
        levels = {}
        for name, groups in _pools(context).items():
            for group in groups:
                levels[group] = params[f"threshold.{name}"]
        return _pruned(context, levels, params, self.unpruned(context, params))


@dataclass(frozen=True)
class Uniform(Recovery):
    """One threshold for all groups, on the scale of the method's rule."""

    low: float = 0.0
    high: float = 0.95
    needs_profile: bool = False

    def distributions(self, context: SearchContext) -> dict[str, BaseDistribution]:
        _pools(context)
        threshold = {"threshold": FloatDistribution(self.low, self.high)}
        return {**threshold, **block_dimension(context), **self.recovery()}

    def chain(self, context: SearchContext, ratio: float) -> Params:
        blocks = block_first(context, ratio)
        level = _uniform_threshold(context, ratio, blocks, self.low, self.high)
        return {"threshold": level, **blocks, **self.first()}

    def propose(self, context: SearchContext, params: Params) -> Plan:
        levels = {name: params["threshold"] for name in context.width_names}
        return _pruned(context, levels, params, self.unpruned(context, params))


@dataclass(frozen=True)
class Patterns(Recovery):
    """For methods of N:M: whether each weight tensor gets the pattern.

    There is no threshold to search.
    """

    needs_profile: bool = False

    def distributions(self, context: SearchContext) -> dict[str, BaseDistribution]:
        dimensions: dict[str, BaseDistribution] = {}
        for group in context.structure.groups:
            if group.kind != "pattern":
                raise ConfigError(
                    "space=patterns is for methods of granularity pattern (N:M); take "
                    "space=allocation"
                )
            dimensions[f"pattern.{group.name}"] = CategoricalDistribution((True, False))
        return {**dimensions, **self.recovery()}

    def chain(self, context: SearchContext, ratio: float) -> Params:
        """Patterns for the tensors with the most effective MACs first.

        More of them get the pattern until the target is met or all have it.
        """
        kept = context.structure.sizes
        saved = []
        for index in range(len(kept)):
            alone = context.structure.sizes
            alone[index] = 0
            saved.append(context.dense_macs - context.macs(alone))
        for index in np.argsort(-np.array(saved), kind="stable"):
            if context.macs(kept) <= ratio * context.dense_macs:
                break
            kept[index] = 0
        applied = {}
        for index, group in enumerate(context.structure.groups):
            applied[f"pattern.{group.name}"] = bool(kept[index] == 0)
        return {**applied, **self.first()}

    def propose(self, context: SearchContext, params: Params) -> Plan:
        levels = {}
        for group in context.structure.groups:
            levels[group.name] = float(params[f"pattern.{group.name}"])
        asked = Thresholds(levels, "quantile")
        return context.pruned(self.unpruned(context, params), context.counts(asked), asked)


def _pools(context: SearchContext) -> dict[str, list[str]]:
    """Names of the groups that share a threshold, by the name of the pool.

    A pool is named after its first group and the number of further ones.
    """
    groups = context.structure.groups
    for group in groups:
        if group.kind == "pattern":
            raise ConfigError("N:M has no threshold; take space=patterns")
    pools = context.pools
    if pools is None:
        pools = [[index] for index in range(context.widths)]
    named = {}
    for pool in pools:
        names = [groups[index].name for index in pool if index < context.widths]
        if names:
            further = f"+{len(names) - 1}" if len(names) > 1 else ""
            named[names[0] + further] = names
    return named


def _pruned(context: SearchContext, levels: dict[str, float], params: Params, plan: Plan) -> Plan:
    """The plan with these thresholds for groups that are not blocks."""
    levels = {**_at_most_all_but_one(context, levels), **_block_levels(context, params)}
    asked = Thresholds(levels, context.rule)
    return context.pruned(plan, context.counts(asked, pooled=context.pools is not None), asked)


def _block_levels(context: SearchContext, params: Params) -> dict[str, float]:
    """Thresholds that drop blocks, whatever the rule, or keep them."""
    gone = set(context.blocks[: params.get("blocks", 0)])
    drops = 1.0 if context.rule == "quantile" else float("inf")
    levels = {}
    for index in sorted(context.blocks):
        name = context.structure.groups[index].name
        levels[name] = drops if index in gone else 0.0
    return levels


def _uniform_threshold(
    context: SearchContext, ratio: float, blocks: Params, low: float, high: float
) -> float:
    """The lowest common threshold within [low, high] that meets the target beside `blocks`.

    It is `high` where none does.
    """
    full = context.structure.full()
    dropped = _block_levels(context, blocks)

    def kept(level: float) -> Counts:
        levels = _at_most_all_but_one(context, dict.fromkeys(context.width_names, level))
        try:
            units = counts(
                context.structure,
                context.scores,
                full,
                {**levels, **dropped},
                context.rule,
                context.pools,
            )
        except PlanError:
            # the level is above some group's best score: further than any plan may go
            return np.zeros(len(context.structure.groups), dtype=np.int64)
        return context.round(units)

    target = int(ratio * context.dense_macs)
    return lowest_level(kept, context.macs, target, low, high)


def _at_most_all_but_one(context: SearchContext, levels: Mapping[str, float]) -> dict[str, float]:
    """Levels under which a small group keeps its last unit, where the rule is the quantile.

    What other rules empty is known by the scores only.
    """
    if context.rule != "quantile" or context.pools is not None:
        return dict(levels)
    sizes = {group.name: group.size for group in context.structure.groups}
    return {name: min(level, 1.0 - 1.0 / sizes[name]) for name, level in levels.items()}
