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
from orchestrator.search.space.contract import Params, Terrain
from orchestrator.search.space.recovery import Recovery, block_dimension, block_first


@dataclass(frozen=True)
class PerGroup(Recovery):
    """One independent threshold per group, or per pool of groups that the scope compares, in the
    unit of the rule.
    """

    low: float = 0.0
    high: float = 0.95
    needs_profile: bool = False

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        thresholds: dict[str, BaseDistribution] = {
            f"threshold.{name}": FloatDistribution(self.low, self.high) for name in _pools(terrain)
        }
        return {**thresholds, **block_dimension(terrain), **self.recovery()}

    def chain(self, terrain: Terrain, flops_ratio: float) -> Params:
        blocks = block_first(terrain, flops_ratio)
        level = _uniform_threshold(terrain, flops_ratio, blocks, self.low, self.high)
        thresholds = {f"threshold.{name}": level for name in _pools(terrain)}
        return {**thresholds, **blocks, **self.first()}

    def propose(self, terrain: Terrain, params: Params) -> Plan:
        levels = {
            group: params[f"threshold.{name}"]
            for name, groups in _pools(terrain).items()
            for group in groups
        }
        return _pruned(terrain, levels, params, self.unpruned(terrain, params))


@dataclass(frozen=True)
class Uniform(Recovery):
    """One threshold for all groups, in the unit of the method's rule."""

    low: float = 0.0
    high: float = 0.95
    needs_profile: bool = False

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        _pools(terrain)
        threshold = {"threshold": FloatDistribution(self.low, self.high)}
        return {**threshold, **block_dimension(terrain), **self.recovery()}

    def chain(self, terrain: Terrain, flops_ratio: float) -> Params:
        blocks = block_first(terrain, flops_ratio)
        level = _uniform_threshold(terrain, flops_ratio, blocks, self.low, self.high)
        return {"threshold": level, **blocks, **self.first()}

    def propose(self, terrain: Terrain, params: Params) -> Plan:
        levels = {
            group.name: params["threshold"] for group in terrain.structure.groups[: terrain.widths]
        }
        return _pruned(terrain, levels, params, self.unpruned(terrain, params))


@dataclass(frozen=True)
class Patterns(Recovery):
    """For methods of N:M: whether each weight tensor gets the pattern. There is no threshold to
    search.
    """

    needs_profile: bool = False

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        if any(group.kind != "pattern" for group in terrain.structure.groups):
            raise ConfigError(
                "space=patterns is for methods of granularity pattern (N:M); take space=allocation"
            )
        applied: dict[str, BaseDistribution] = {
            f"pattern.{group.name}": CategoricalDistribution((True, False))
            for group in terrain.structure.groups
        }
        return {**applied, **self.recovery()}

    def chain(self, terrain: Terrain, flops_ratio: float) -> Params:
        """The tensors with the most effective MACs first, until the target is met or all have the
        pattern.
        """
        kept = terrain.structure.sizes
        saved = []
        for index in range(len(kept)):
            alone = terrain.structure.sizes
            alone[index] = 0
            saved.append(terrain.dense_macs - terrain.macs(alone))
        for index in np.argsort(-np.array(saved), kind="stable"):
            if terrain.macs(kept) <= flops_ratio * terrain.dense_macs:
                break
            kept[index] = 0
        applied = {
            f"pattern.{g.name}": bool(kept[i] == 0) for i, g in enumerate(terrain.structure.groups)
        }
        return {**applied, **self.first()}

    def propose(self, terrain: Terrain, params: Params) -> Plan:
        levels = {
            group.name: float(params[f"pattern.{group.name}"]) for group in terrain.structure.groups
        }
        asked = Thresholds(levels, "quantile")
        return terrain.pruned(self.unpruned(terrain, params), terrain.counts(asked), asked)


def _pools(terrain: Terrain) -> dict[str, list[str]]:
    """Names of the groups that share a threshold, under the name of the first and how many more
    there are.
    """
    groups = terrain.structure.groups
    if any(group.kind == "pattern" for group in groups):
        raise ConfigError("N:M has no threshold; take space=patterns")
    pools = [[i] for i in range(terrain.widths)] if terrain.pools is None else terrain.pools
    found = {}
    for pool in pools:
        names = [groups[i].name for i in pool if i < terrain.widths]
        if names:
            found[names[0] + (f"+{len(names) - 1}" if len(names) > 1 else "")] = names
    return found


def _pruned(terrain: Terrain, levels: dict[str, float], params: Params, plan: Plan) -> Plan:
    """The plan with these thresholds for groups that are no blocks."""
    levels = {**_at_most_all_but_one(terrain, levels), **_block_levels(terrain, params)}
    asked = Thresholds(levels, terrain.rule)
    return terrain.pruned(plan, terrain.counts(asked, pooled=terrain.pools is not None), asked)


def _block_levels(terrain: Terrain, params: Params) -> dict[str, float]:
    """Thresholds that drop blocks, whatever the rule, or keep them."""
    gone = set(terrain.blocks[: params.get("blocks", 0)])
    drops = 1.0 if terrain.rule == "quantile" else float("inf")
    return {
        terrain.structure.groups[i].name: drops if i in gone else 0.0
        for i in sorted(terrain.blocks)
    }


def _uniform_threshold(
    terrain: Terrain, flops_ratio: float, blocks: Params, low: float, high: float
) -> float:
    """The lowest common threshold within [low, high] that meets the target beside `blocks`; `high`
    where none does.
    """
    groups, full, dropped = (
        terrain.structure.groups,
        terrain.structure.full(),
        _block_levels(terrain, blocks),
    )

    def kept(level: float) -> Counts:
        levels = _at_most_all_but_one(
            terrain, {group.name: level for group in groups[: terrain.widths]}
        )
        try:
            found = counts(
                terrain.structure,
                terrain.scores,
                full,
                {**levels, **dropped},
                terrain.rule,
                terrain.pools,
            )
        except PlanError:  # above some group's best score: further than any plan may go
            return np.zeros(len(groups), dtype=np.int64)
        return terrain.round(found)

    return lowest_level(kept, terrain.macs, int(flops_ratio * terrain.dense_macs), low, high)


def _at_most_all_but_one(terrain: Terrain, levels: Mapping[str, float]) -> dict[str, float]:
    """Under the quantile rule a small group keeps its last unit; what other rules empty is known by
    score only.
    """
    if terrain.rule != "quantile" or terrain.pools is not None:
        return dict(levels)
    sizes = {group.name: group.size for group in terrain.structure.groups}
    return {name: min(level, 1.0 - 1.0 / sizes[name]) for name, level in levels.items()}
