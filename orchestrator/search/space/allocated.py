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
from orchestrator.search.space.allocation import (
    Ratios,
    Shares,
    allocate,
    between_allocations,
    lowest_level,
)
from orchestrator.search.space.contract import Params, SearchContext
from orchestrator.search.space.recovery import Recovery, block_dimension, block_first
from orchestrator.settings import within_reach


@dataclass(frozen=True)
class Allocation(Recovery):
    """A target, how it is shared out, and an offset per group around that.

    It is shared out by a blend of uniform and equal-loss allocation. `flops_ratio` is [least, most]
    of the target, laid out above what can be reached; where the study's first cost is a latency,
    the target and its limits are ratios of the estimated latency. Offsets are in octaves. Under a
    scope over several groups the even allocation is that of the ranking instead of equal ratios,
    and in a study that begins from a preview it is the preview's.
    """

    flops_ratio: Sequence[float] = (0.05, 0.8)
    offset: float = 0.5
    equal_loss: Sequence[float] = (0.0, 1.0)

    @property
    def needs_profile(self) -> bool:
        """Whether any plan is shared out by measured losses."""
        return self.equal_loss[-1] > 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.flops_ratio[0] <= self.flops_ratio[-1] <= 1.0:
            raise ConfigError(
                "space.flops_ratio must be [least, most] within (0, 1]; got "
                f"{list(self.flops_ratio)}"
            )

    def distributions(self, context: SearchContext) -> dict[str, BaseDistribution]:
        least, most = self._range(context)
        dimensions: dict[str, BaseDistribution] = {
            context.target: FloatDistribution(least, most, log=True),
            "equal_loss": FloatDistribution(self.equal_loss[0], self.equal_loss[1]),
        }
        for name, width in self.offsets(context).items():
            dimensions[name] = FloatDistribution(-width, width)
        return {**dimensions, **block_dimension(context), **self.recovery()}

    def offsets(self, context: SearchContext) -> dict[str, float]:
        """Largest size of each offset dimension, in octaves."""
        if self.offset <= 0.0:
            return {}
        return {f"offset.{name}": self.offset for name in context.width_names}

    def octaves(self, context: SearchContext, params: Params) -> Ratios:
        """The offset of each group; shape (groups that are not blocks,)."""
        return np.array([params.get(f"offset.{name}", 0.0) for name in context.width_names])

    def _range(self, context: SearchContext) -> tuple[float, float]:
        least, most = within_reach(self.flops_ratio[0], self.flops_ratio[-1], context.least_ratio)
        most = min(most, context.largest_ratio)
        return min(least, most), most

    def chain(self, context: SearchContext, ratio: float) -> Params:
        least, most = self._range(context)
        return {
            context.target: min(max(ratio, least), most),
            "equal_loss": self.equal_loss[0],
            **dict.fromkeys(self.offsets(context), 0.0),
            **block_first(context, ratio),
            **self.first(),
        }

    def propose(self, context: SearchContext, params: Params) -> Plan:
        kept = self.kept(context, params)
        asked = Thresholds(quantiles(context.structure, kept), "quantile")
        return context.pruned(self.unpruned(context, params), context.round(kept), asked)

    def kept(self, context: SearchContext, params: Params) -> Counts:
        """Units kept per group, blocks included; shape (n_groups,).

        Rounded for the hardware, they are within the target.
        """
        widths = context.widths
        blocks = context.without_blocks(params.get("blocks", 0))

        def macs(kept: Counts) -> int:
            return context.macs(context.round(np.concatenate([kept, blocks])))

        sensitivity = context.sensitivity
        if sensitivity is not None:
            sensitivity = replace(sensitivity, loss=sensitivity.loss[:widths])
        shares = Shares(
            params["equal_loss"],
            sensitivity,
            self.octaves(context, params),
            _instead_of_even(context, macs),
        )
        target = int(params[context.target] * context.dense_macs)
        kept = allocate(context.structure.sizes[:widths], macs, target, shares)
        return np.concatenate([kept, blocks])


def _instead_of_even(
    context: SearchContext, macs: Callable[[Counts], int]
) -> Callable[[int], Counts] | None:
    """Maps a target to counts that stand in for equal ratios; None where these are taken."""
    if context.allocations is None:
        return ranked(context, macs)
    widths = context.widths
    sizes = context.structure.sizes[:widths]
    allocations = context.allocations[:, :widths]
    return lambda target: between_allocations(sizes, macs, target, allocations)


def ranked(context: SearchContext, macs: Callable[[Counts], int]) -> Callable[[int], Counts] | None:
    """Maps a target to the most units that one quantile of each pool leaves within it.

    None under a local scope, which has no ranking over several groups.
    """
    if context.pools is None:
        return None
    widths = context.widths
    names = context.width_names

    def at_level(level: float) -> Counts:
        units = counts(
            context.structure,
            context.scores,
            context.structure.full(),
            dict.fromkeys(names, level),
            "quantile",
            context.pools,
        )
        return units[:widths]

    def at_target(target: int) -> Counts:
        return at_level(lowest_level(at_level, macs, target, 0.0, 1.0))

    return at_target


@dataclass(frozen=True)
class Hierarchical(Allocation):
    """First how much each stage keeps, then each group inside it.

    Offsets, in octaves, are on both levels and add up. Stages are groups that share the first parts
    of their names; see `stage_names`.
    """

    stage_offset: float = 1.0
    offset: float = 0.25

    def offsets(self, context: SearchContext) -> dict[str, float]:
        dimensions = {}
        if self.stage_offset > 0.0:
            for name in stage_names(context.width_names):
                dimensions[f"stage.{name}"] = self.stage_offset
        return {**dimensions, **super().offsets(context)}

    def octaves(self, context: SearchContext, params: Params) -> Ratios:
        outer = []
        for stage in stage_names(context.width_names):
            outer.append(params.get(f"stage.{stage}", 0.0))
        total: Ratios = np.array(outer) + super().octaves(context, params)
        return total


def stage_names(groups: Sequence[str]) -> list[str]:
    """The stage of each group.

    A stage is named by as few parts of the dotted names as leave no stage with more than half of
    the groups.
    """
    parts = [name.split(".") for name in groups]
    names = list(groups)
    deepest = max(len(name) for name in parts)
    for depth in range(deepest, 0, -1):
        shorter = [".".join(name[:depth]) for name in parts]
        largest = max(Counter(shorter).values())
        if 2 * largest > len(groups):
            break
        names = shorter
    return names


@dataclass(frozen=True)
class Hybrid(Allocation):
    """Units, then weights of what they leave.

    The FLOPs target is for the units, `sparsity` for the weights. A second stage of N:M has no
    sparsity but is applied or not.
    """

    sparsity: Sequence[float] = (0.0, 0.8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.sparsity[0] <= self.sparsity[-1] < 1.0:
            raise ConfigError(
                f"space.sparsity must be [least, most] within [0, 1); got {list(self.sparsity)}"
            )

    def distributions(self, context: SearchContext) -> dict[str, BaseDistribution]:
        dimensions = super().distributions(context)
        if _then(context).structure.groups[0].kind == "pattern":
            dimensions["then.applied"] = CategoricalDistribution((True, False))
        else:
            dimensions["then.sparsity"] = FloatDistribution(self.sparsity[0], self.sparsity[-1])
        return dimensions

    def chain(self, context: SearchContext, ratio: float) -> Params:
        """Both stages take the same share of the way, the square root of the target.

        A pattern takes what it always takes.
        """
        then = _then(context)
        if then.structure.groups[0].kind == "pattern":
            least = then.macs(then.structure.least) / then.dense_macs
            applied = ratio <= least * self.flops_ratio[-1]
            first = ratio / least if applied else ratio
            return {**super().chain(context, first), "then.applied": applied}
        half = ratio**0.5
        sparsity = min(max(1.0 - half, self.sparsity[0]), self.sparsity[-1])
        return {**super().chain(context, half), "then.sparsity": sparsity}

    def propose(self, context: SearchContext, params: Params) -> Plan:
        units_removed = super().propose(context, params)
        then = _then(context)
        level = params["then.applied"] if "then.applied" in params else params["then.sparsity"]
        names = [group.name for group in then.structure.groups]
        asked = Thresholds(dict.fromkeys(names, float(level)), "quantile")
        kept = then.counts(asked, pooled=then.pools is not None)
        return then.pruned(units_removed, kept, asked)


def _then(context: SearchContext) -> SearchContext:
    if context.then is None:
        raise ConfigError(
            "space=hybrid needs a method with a second stage (`then`), such as method=hybrid"
        )
    return context.then
