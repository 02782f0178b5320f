"""Schedule and recovery as search dimensions.

These are pruning steps, their shape and moments, finetuning and distillation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.plan import Plan, Timing
from lightning_modules.pruning.schedules import SCHEDULES
from orchestrator.search.space.contract import Params, SearchContext
from orchestrator.search.space.levels import check_levels


@dataclass(frozen=True)
class Recovery:
    """How pruning steps and finetuning take turns.

    `steps` is the number (frequency) of pruning steps, `shapes` the shape of their schedule,
    `start` and `end` the part of the finetuning they lie in, `rounds` the rounds after each. Pairs
    are [least, most]; where both are the same the dimension is fixed. `distillation` is the weight
    of the dense outputs, None as the phases have it; the chain takes the middle. `levels` is as in
    `Space`.
    """

    steps: Sequence[int] = (1, 2)
    shapes: Sequence[str] = ("linear", "cubic")
    rounds: Sequence[int] = (1, 2)
    start: Sequence[float] = (0.0, 0.0)
    end: Sequence[float] = (1.0, 1.0)
    distillation: Sequence[float] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        check_levels(self.levels)
        unknown = sorted(set(self.shapes) - set(SCHEDULES))
        if unknown:
            raise ConfigError(f"space.shapes must be among {sorted(SCHEDULES)}; got {unknown}")
        _require_counts("steps", self.steps)
        _require_counts("rounds", self.rounds)
        weight = self.distillation
        if weight is not None and not 0.0 <= weight[0] <= weight[-1] <= 1.0:
            raise ConfigError(
                "space.distillation must be [least, most] weights within [0, 1]; got "
                f"{list(weight)}"
            )
        if not 0.0 <= self.start[0] <= self.start[-1] < self.end[0] <= self.end[-1] <= 1.0:
            raise ConfigError(
                "space.start and space.end must be [least, most] fractions, every start before "
                f"every end; got {list(self.start)} and {list(self.end)}"
            )

    def recovery(self) -> dict[str, BaseDistribution]:
        """The dimensions that are not fixed, by name."""
        dimensions: dict[str, BaseDistribution] = {
            "schedule.steps": IntDistribution(self.steps[0], self.steps[-1]),
            "schedule.shape": CategoricalDistribution(tuple(self.shapes)),
            "finetune.rounds": IntDistribution(self.rounds[0], self.rounds[-1]),
        }
        pairs = {"schedule.start": self.start, "schedule.end": self.end}
        if self.distillation is not None:
            pairs["distillation.weight"] = self.distillation
        for name, bounds in pairs.items():
            if bounds[0] < bounds[-1]:
                dimensions[name] = FloatDistribution(bounds[0], bounds[-1])
        return dimensions

    def first(self) -> Params:
        """The chain's parameters: the fewest pruning steps, the most finetuning after each."""
        params: Params = {
            "schedule.steps": self.steps[0],
            "schedule.shape": self.shapes[0],
            "finetune.rounds": self.rounds[-1],
            "schedule.start": self.start[0],
            "schedule.end": self.end[-1],
            "distillation.weight": self._middle(),
        }
        return {name: params[name] for name in self.recovery()}

    def timing(self, params: Params) -> Timing:
        return Timing(
            params["schedule.shape"],
            params["schedule.steps"],
            params["finetune.rounds"],
            params.get("schedule.start", self.start[0]),
            params.get("schedule.end", self.end[-1]),
            distillation=params.get("distillation.weight", self._middle()),
        )

    def unpruned(self, context: SearchContext, params: Params) -> Plan:
        """The trial's plan before anything is removed."""
        return Plan(context.method, timing=self.timing(params))

    def _middle(self) -> float | None:
        if self.distillation is None:
            return None
        return 0.5 * (self.distillation[0] + self.distillation[-1])


def _require_counts(name: str, pair: Sequence[int]) -> None:
    """Errors: ConfigError for what is no [least, most] from 1 on."""
    low = pair[0]
    high = pair[-1]
    if not 1 <= low <= high:
        raise ConfigError(
            f"space.{name} must be [least, most] with 1 <= least <= most; got [{low}, {high}]"
        )


def block_dimension(context: SearchContext) -> dict[str, BaseDistribution]:
    """How many whole blocks go, the least important first.

    There is no such dimension where the method leaves depth alone.
    """
    n_blocks = len(context.blocks)
    return {"blocks": IntDistribution(0, n_blocks)} if n_blocks else {}


def block_first(context: SearchContext, ratio: float) -> Params:
    """Blocks that the chain drops at a target: ratio^depth of them stay.

    That is the nearest whole number. More stay where the others at full width would fall short of
    the target.
    """
    n_blocks = len(context.blocks)
    if not n_blocks:
        return {}
    full = context.structure.sizes[: context.widths]
    target = ratio * context.dense_macs
    dropped = round(n_blocks * (1.0 - ratio**context.depth))
    while dropped:
        widest = np.concatenate([full, context.without_blocks(dropped)])
        if context.macs(widest) >= target:
            break
        dropped -= 1
    return {"blocks": dropped}
