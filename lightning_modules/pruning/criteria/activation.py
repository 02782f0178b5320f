"""How active a unit is on data: mean size, share of zeros, rank of its maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import per_group
from lightning_modules.pruning.criteria.taps import Row, observe
from lightning_modules.pruning.structure import Axis, Group, Structure
from lightning_modules.pruning.thresholds import Scores

Statistic = Callable[[Tensor], tuple[Tensor, int]]
"""From activations (samples, positions, ...extent) to the sum per position, shape (positions,), and over how many."""


@dataclass(frozen=True)
class Activation:
    """Mean |activation| of the unit as its consumers see it, over all batches and places (Molchanov et al. 2017, 2.2).

    A coupled group gets the mean of its consumers.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return averages(
            model, structure, calibration, lambda x: (_per_position(x.abs()), _count(x))
        )


@dataclass(frozen=True)
class Apoz:
    """1 - the average percentage of zeros of the unit's activations (Hu et al. 2016, eq. 1).

    Zero is |activation| <= `tolerance`: behind a ReLU exact zeros are meant; smooth nonlinearities have none, so
    that every unit scores 1 there unless the tolerance is raised.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not self.tolerance >= 0.0:
            raise ConfigError(
                f"method.criterion.tolerance must be at least 0; got {self.tolerance}; 0 suits ReLU"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        def active(x: Tensor) -> tuple[Tensor, int]:
            # a NaN is no zero; it must stay one for the check of the scores to find
            return _per_position(
                torch.where(x.isnan(), x, (x.abs() > self.tolerance).to(x.dtype))
            ), _count(x)

        return averages(model, structure, calibration, active)


def averages(
    model: nn.Module, structure: Structure, calibration: Calibration, statistic: Statistic
) -> Scores:
    """Mean of a statistic per unit over all places where a consumer sees it, then combined; shape (n_units,)."""
    sums: dict[Axis, Scores] = {}
    counts: dict[Axis, Scores] = {}

    def add(axis: Axis, row: Row, x: Tensor) -> None:
        total, count = statistic(x)
        mine = row >= 0
        for store, values in ((sums, total.double().cpu().numpy()[mine]), (counts, count)):
            np.add.at(store.setdefault(axis, np.zeros(structure.n_units)), row[mine], values)

    observe(model, structure, calibration, add)

    def rows(group: Group) -> list[Scores]:
        seen = [(m.tensor, m.dim) for m in group.members if (m.tensor, m.dim) in sums]
        held = [axis for axis in seen if counts[axis][group.units].any()]
        return [
            sums[axis][group.units] / np.maximum(counts[axis][group.units], 1.0) for axis in held
        ]

    return per_group(structure, rows)


def _per_position(x: Tensor) -> Tensor:
    """Sum over everything but positions, in double precision; shape (positions,)."""
    return x.transpose(0, 1).flatten(1).sum(1, dtype=torch.float64)


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]
