"""Scores units by how active they are on data: their mean size, or their share of zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import per_group
from lightning_modules.pruning.criteria.taps import UnitRow, observe
from lightning_modules.pruning.structure import Axis, Group, Structure
from lightning_modules.pruning.thresholds import Scores

Statistic = Callable[[Tensor], tuple[Tensor, int]]
"""Maps activations (samples, positions, ...extent) to a sum per position and a count.

The sum has shape (positions,); the count says over how many values each sum goes.
"""


@dataclass(frozen=True)
class Activation:
    """The mean |activation| of the unit as its consumers see it, over all batches and places.

    A coupled group gets the mean of its consumers. Source: Molchanov et al. 2017, 2.2.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return averages(model, structure, calibration, _magnitudes)


@dataclass(frozen=True)
class Apoz:
    """1 - the average percentage of zeros of the unit's activations (Hu et al. 2016, eq. 1).

    Zero means |activation| <= `tolerance`. The default of 0 suits the exact zeros behind a ReLU.
    Smooth nonlinearities give none, so that every unit scores 1 there unless the tolerance is
    raised.
    Errors: ConfigError for a negative tolerance.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not self.tolerance >= 0.0:
            raise ConfigError(
                f"method.criterion.tolerance must be at least 0; got {self.tolerance}; 0 suits ReLU"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return averages(model, structure, calibration, self._active)

    def _active(self, x: Tensor) -> tuple[Tensor, int]:
        active = (x.abs() > self.tolerance).to(x.dtype)
        # a NaN is no zero; it must stay a NaN for the check of the scores to find
        return _per_position(torch.where(x.isnan(), x, active)), _count(x)


def averages(
    model: nn.Module, structure: Structure, calibration: Calibration, statistic: Statistic
) -> Scores:
    """The mean of a statistic per unit over all places where a consumer sees it.

    The means of several consumers are then combined; shape (n_units,).
    """
    sums: dict[Axis, Scores] = {}
    counts: dict[Axis, Scores] = {}

    def add(axis: Axis, row: UnitRow, x: Tensor) -> None:
        total, count = statistic(x)
        prunable = row >= 0
        units = row[prunable]
        if axis not in sums:
            sums[axis] = np.zeros(structure.n_units)
            counts[axis] = np.zeros(structure.n_units)
        np.add.at(sums[axis], units, total.double().cpu().numpy()[prunable])
        np.add.at(counts[axis], units, count)

    observe(model, structure, calibration, add)

    def rows(group: Group) -> list[Scores]:
        means = []
        for member in group.members:
            axis = (member.tensor, member.dim)
            if axis in sums and counts[axis][group.units].any():
                count = np.maximum(counts[axis][group.units], 1.0)
                means.append(sums[axis][group.units] / count)
        return means

    return per_group(structure, rows)


def _magnitudes(x: Tensor) -> tuple[Tensor, int]:
    return _per_position(x.abs()), _count(x)


def _per_position(x: Tensor) -> Tensor:
    """The sum over everything but positions, in double precision; shape (positions,)."""
    return x.transpose(0, 1).flatten(1).sum(1, dtype=torch.float64)


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]
