"""Spaces of cost targets that are shared out among the groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.plan import Plan, Thresholds
from lightning_modules.pruning.structure import Counts
from lightning_modules.pruning.thresholds import counts, quantiles
from orchestrator.search.space.allocation import Ratios, Shares, allocate, lowest_level
from orchestrator.search.space.contract import Params, Terrain
from orchestrator.search.space.recovery import Recovery, block_dimension, block_first


@dataclass(frozen=True)
class Allocation(Recovery):
    """A FLOPs target, a blend of uniform and equal-loss allocation, and an offset in octaves per
    group around it.

    Under a global or isomorphic scope the even allocation is that of the ranking instead of equal
    ratios.
    """

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
        for name, width in self.offsets(terrain).items():
            found[name] = FloatDistribution(-width, width)
        return {**found, **block_dimension(terrain), **self.recovery()}

    def offsets(self, terrain: Terrain) -> dict[str, float]:
        """Largest size of each offset dimension, in octaves."""
        if self.offset <= 0.0:
            return {}
        return {
            f"offset.{group.name}": self.offset
            for group in terrain.structure.groups[: terrain.widths]
        }

    def octaves(self, terrain: Terrain, params: Params) -> Ratios:
        """The offset of each group; shape (groups that are no blocks,)."""
        return np.array(
            [
                params.get(f"offset.{g.name}", 0.0)
                for g in terrain.structure.groups[: terrain.widths]
            ]
        )

    def _flops_range(self, terrain: Terrain) -> tuple[float, float]:
        most = min(self.most_flops_ratio, terrain.max_flops_ratio)
        return min(self.least_flops_ratio, most), most

    def chain(self, terrain: Terrain, flops_ratio: float) -> Params:
        least, most = self._flops_range(terrain)
        return {
            "flops_ratio": min(max(flops_ratio, least), most),
            "equal_loss": self.equal_loss[0],
            **dict.fromkeys(self.offsets(terrain), 0.0),
            **block_first(terrain, flops_ratio),
            **self.first(),
        }

    def propose(self, terrain: Terrain, params: Params) -> Plan:
        kept = self.kept(terrain, params)
        asked = Thresholds(quantiles(terrain.structure, kept), "quantile")
        return terrain.pruned(self.unpruned(terrain, params), terrain.round(kept), asked)

    def kept(self, terrain: Terrain, params: Params) -> Counts:
        """Units kept per group, blocks included; rounded they are within the target; shape
        (n_groups,).
        """
        widths, blocks = terrain.widths, terrain.without_blocks(params.get("blocks", 0))

        def macs(kept: Counts) -> int:
            return terrain.macs(terrain.round(np.concatenate([kept, blocks])))

        sensitivity = terrain.sensitivity
        if sensitivity is not None:
            sensitivity = replace(sensitivity, loss=sensitivity.loss[:widths])
        shares = Shares(
            params["equal_loss"],
            sensitivity,
            self.octaves(terrain, params),
            ranked(terrain, macs),
        )
        target = int(params["flops_ratio"] * terrain.dense_macs)
        kept = allocate(terrain.structure.sizes[:widths], macs, target, shares)
        return np.concatenate([kept, blocks])


def ranked(terrain: Terrain, macs: Callable[[Counts], int]) -> Callable[[int], Counts] | None:
    """Under a global or isomorphic scope: the most that one quantile of each pool leaves within a
    target.
    """
    if terrain.pools is None:
        return None
    widths = terrain.widths

    def at(target: int) -> Counts:
        def found(level: float) -> Counts:
            names = (group.name for group in terrain.structure.groups[:widths])
            thresholds = dict.fromkeys(names, level)
            full = terrain.structure.full()
            return counts(
                terrain.structure, terrain.scores, full, thresholds, "quantile", terrain.pools
            )[:widths]

        return found(lowest_level(found, macs, target, 0.0, 1.0))

    return at


@dataclass(frozen=True)
class Hierarchical(Allocation):
    """First how much each stage keeps, then each group inside it: offsets in octaves on both
    levels, which add up.

    Stages are groups that share the first parts of their names; see `stage_names`.
    """

    stage_offset: float = 1.0
    offset: float = 0.25

    def offsets(self, terrain: Terrain) -> dict[str, float]:
        stages = dict.fromkeys(
            stage_names([group.name for group in terrain.structure.groups[: terrain.widths]])
        )
        outer = (
            {f"stage.{name}": self.stage_offset for name in stages}
            if self.stage_offset > 0.0
            else {}
        )
        return {**outer, **super().offsets(terrain)}

    def octaves(self, terrain: Terrain, params: Params) -> Ratios:
        names = stage_names([group.name for group in terrain.structure.groups[: terrain.widths]])
        outer: Ratios = np.array([params.get(f"stage.{name}", 0.0) for name in names])
        total: Ratios = outer + super().octaves(terrain, params)
        return total


def stage_names(groups: Sequence[str]) -> list[str]:
    """The stage of each group: as few parts of the dotted names as leave no stage with more than
    half of the groups.
    """
    parts = [name.split(".") for name in groups]
    names = list(groups)
    for depth in range(max(len(name) for name in parts), 0, -1):
        shorter = [".".join(name[:depth]) for name in parts]
        if 2 * max(Counter(shorter).values()) > len(groups):
            break
        names = shorter
    return names


@dataclass(frozen=True)
class Hybrid(Allocation):
    """Units, then weights of what they leave: the FLOPs target is for the units, `sparsity` for the
    weights.

    A second stage of N:M has no sparsity but is applied or not.
    """

    sparsity: Sequence[float] = (0.0, 0.8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.sparsity[0] <= self.sparsity[-1] < 1.0:
            raise ConfigError(
                f"space.sparsity must be [least, most] within [0, 1); got {list(self.sparsity)}"
            )

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        found = super().distributions(terrain)
        if _then(terrain).structure.groups[0].kind == "pattern":
            return {**found, "then.applied": CategoricalDistribution((True, False))}
        return {**found, "then.sparsity": FloatDistribution(self.sparsity[0], self.sparsity[-1])}

    def chain(self, terrain: Terrain, flops_ratio: float) -> Params:
        """Both stages take the same share of the way, the square root of the target; a pattern what
        it always takes.
        """
        then = _then(terrain)
        if then.structure.groups[0].kind == "pattern":
            least = then.macs(then.structure.least) / then.dense_macs
            applied = flops_ratio <= least * self.most_flops_ratio
            first = flops_ratio / least if applied else flops_ratio
            return {**super().chain(terrain, first), "then.applied": applied}
        half = flops_ratio**0.5
        sparsity = min(max(1.0 - half, self.sparsity[0]), self.sparsity[-1])
        return {**super().chain(terrain, half), "then.sparsity": sparsity}

    def propose(self, terrain: Terrain, params: Params) -> Plan:
        units_removed = super().propose(terrain, params)
        then = _then(terrain)
        level = params["then.applied"] if "then.applied" in params else params["then.sparsity"]
        levels = dict.fromkeys((group.name for group in then.structure.groups), float(level))
        asked = Thresholds(levels, "quantile")
        kept = then.counts(asked, pooled=then.pools is not None)
        return then.pruned(units_removed, kept, asked)


def _then(terrain: Terrain) -> Terrain:
    if terrain.then is None:
        raise ConfigError(
            "space=hybrid needs a method with a second stage (`then`), such as method=hybrid"
        )
    return terrain.then
