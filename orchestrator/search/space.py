"""Spaces: what Optuna may vary, and the plan that its parameters stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.plan import Rule
from lightning_modules.pruning.schedules import SCHEDULES
from lightning_modules.pruning.structure import Counts, Structure
from lightning_modules.pruning.thresholds import Scores, counts, quantiles
from orchestrator.search.allocation import Macs, Sensitivity, allocate, lowest_level
from orchestrator.search.measurement import Proposal

Params = dict[str, Any]


@dataclass(frozen=True)
class Terrain:
    """What a space may know of the model: its groups, costs and sensitivity, and the method's rule and dense scores."""

    structure: Structure
    macs: Macs
    dense_macs: int
    rule: Rule
    scores: Scores
    units: int
    sensitivity: Sensitivity | None = None
    max_flops_ratio: float = 1.0


class Space(Protocol):
    """`chain` gives the parameters of one rung of the opening ladder, within the same distributions."""

    needs_profile: bool

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]: ...

    def chain(self, terrain: Terrain, flops_ratio: float, equal_loss: float) -> Params: ...

    def propose(self, terrain: Terrain, params: Params) -> Proposal: ...


@dataclass(frozen=True)
class Recovery:
    """The schedule as search dimensions: number and shape of pruning steps, units of finetuning after each."""

    steps: Sequence[int] = (1, 2)
    shapes: Sequence[str] = ("linear", "cubic")
    units: Sequence[int] = (1, 2)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.shapes) - set(SCHEDULES)):
            raise ConfigError(f"space.shapes must be among {sorted(SCHEDULES)}; got {unknown}")
        for name, (low, high) in {
            "steps": (self.steps[0], self.steps[-1]),
            "units": (self.units[0], self.units[-1]),
        }.items():
            if not 1 <= low <= high:
                raise ConfigError(f"space.{name} must be [least, most] with 1 <= least <= most; got [{low}, {high}]")

    def recovery(self) -> dict[str, BaseDistribution]:
        return {
            "schedule.steps": IntDistribution(self.steps[0], self.steps[-1]),
            "schedule.shape": CategoricalDistribution(tuple(self.shapes)),
            "finetune.units": IntDistribution(self.units[0], self.units[-1]),
        }

    def first(self, units: int) -> Params:
        """What the opening ladder does: one step, `units` units where the dimension admits them."""
        return {
            "schedule.steps": self.steps[0],
            "schedule.shape": self.shapes[0],
            "finetune.units": min(max(units, self.units[0]), self.units[-1]),
        }


def _proposal(thresholds: Mapping[str, float], rule: Rule, params: Params) -> Proposal:
    return Proposal(thresholds, rule, params["schedule.shape"], params["schedule.steps"], params["finetune.units"])


@dataclass(frozen=True)
class Allocation(Recovery):
    """A FLOPs target, a blend of uniform and equal-loss allocation, and an offset in octaves per group around it."""

    least_flops_ratio: float = 0.05
    most_flops_ratio: float = 0.8
    offset: float = 0.5
    equal_loss: Sequence[float] = (0.0, 1.0)
    needs_profile: bool = True

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {
            "flops_ratio": FloatDistribution(*self._flops_range(terrain), log=True),
            "equal_loss": FloatDistribution(self.equal_loss[0], self.equal_loss[1]),
        }
        if self.offset > 0.0:
            for group in terrain.structure.groups:
                found[f"offset.{group.name}"] = FloatDistribution(-self.offset, self.offset)
        return {**found, **self.recovery()}

    def _flops_range(self, terrain: Terrain) -> tuple[float, float]:
        most = min(self.most_flops_ratio, terrain.max_flops_ratio)
        return min(self.least_flops_ratio, most), most

    def chain(self, terrain: Terrain, flops_ratio: float, equal_loss: float) -> Params:
        offsets = {f"offset.{group.name}": 0.0 for group in terrain.structure.groups} if self.offset > 0.0 else {}
        blend = min(max(equal_loss, self.equal_loss[0]), self.equal_loss[1])
        least, most = self._flops_range(terrain)
        return {
            "flops_ratio": min(max(flops_ratio, least), most),
            "equal_loss": blend,
            **offsets,
            **self.first(terrain.units),
        }

    def propose(self, terrain: Terrain, params: Params) -> Proposal:
        groups = terrain.structure.groups
        offsets = np.array([params.get(f"offset.{group.name}", 0.0) for group in groups])
        target = int(params["flops_ratio"] * terrain.dense_macs)
        sizes, blend = terrain.structure.sizes, params["equal_loss"]
        kept = allocate(sizes, terrain.macs, target, terrain.sensitivity, blend, offsets)
        return _proposal(quantiles(terrain.structure, kept), "quantile", params)


@dataclass(frozen=True)
class PerGroup(Recovery):
    """One independent threshold per group, in the unit of the method's rule."""

    low: float = 0.0
    high: float = 0.95
    needs_profile: bool = False

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        thresholds: dict[str, BaseDistribution] = {
            f"threshold.{group.name}": FloatDistribution(self.low, self.high) for group in terrain.structure.groups
        }
        return {**thresholds, **self.recovery()}

    def chain(self, terrain: Terrain, flops_ratio: float, equal_loss: float) -> Params:
        level = _uniform_threshold(terrain, flops_ratio, self.low, self.high)
        thresholds = {f"threshold.{group.name}": level for group in terrain.structure.groups}
        return {**thresholds, **self.first(terrain.units)}

    def propose(self, terrain: Terrain, params: Params) -> Proposal:
        levels = {group.name: params[f"threshold.{group.name}"] for group in terrain.structure.groups}
        return _proposal(_at_most_all_but_one(terrain, levels), terrain.rule, params)


@dataclass(frozen=True)
class Uniform(Recovery):
    """One threshold for all groups, in the unit of the method's rule."""

    low: float = 0.0
    high: float = 0.95
    needs_profile: bool = False

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        return {"threshold": FloatDistribution(self.low, self.high), **self.recovery()}

    def chain(self, terrain: Terrain, flops_ratio: float, equal_loss: float) -> Params:
        return {"threshold": _uniform_threshold(terrain, flops_ratio, self.low, self.high), **self.first(terrain.units)}

    def propose(self, terrain: Terrain, params: Params) -> Proposal:
        levels = {group.name: params["threshold"] for group in terrain.structure.groups}
        return _proposal(_at_most_all_but_one(terrain, levels), terrain.rule, params)


def _uniform_threshold(terrain: Terrain, flops_ratio: float, low: float, high: float) -> float:
    """The lowest common threshold within [low, high] that meets the target; `high` where none does."""
    groups, full = terrain.structure.groups, terrain.structure.full()

    def kept(level: float) -> Counts:
        levels = _at_most_all_but_one(terrain, {group.name: level for group in groups})
        try:
            return counts(terrain.structure, terrain.scores, full, levels, terrain.rule)
        except PlanError:  # above some group's best score: further than any plan may go
            return np.zeros(len(groups), dtype=np.int64)

    return lowest_level(kept, terrain.macs, int(flops_ratio * terrain.dense_macs), low, high)


def _at_most_all_but_one(terrain: Terrain, levels: dict[str, float]) -> dict[str, float]:
    """Under the quantile rule a small group keeps its last unit; what other rules empty is known by score only."""
    if terrain.rule != "quantile":
        return levels
    return {group.name: min(levels[group.name], 1.0 - 1.0 / group.size) for group in terrain.structure.groups}
