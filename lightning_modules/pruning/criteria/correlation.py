"""Scores units by how little their activations repeat those of another unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import combined, occurrences
from lightning_modules.pruning.criteria.redundancy import irreplaceable
from lightning_modules.pruning.criteria.taps import UnitRow, observe
from lightning_modules.pruning.structure import Axis, Group, Structure
from lightning_modules.pruning.thresholds import Scores

_CHUNK = 2**22
"""Activations that are converted to double precision at a time: 32 MB."""
_CONSTANT = 1e-10
"""A variance below this share of the mean square is taken for rounding."""


@dataclass(frozen=True)
class Correlation:
    """1 - max |correlation| of a unit's activations with those of a unit of larger variance.

    It is taken over all batches, samples and places, as the consumers see the unit. Only sums of
    products are held, which take the square of a group's size per consumer. The correlations at
    several consumers are averaged before the maximum. A constant unit can be replaced by a bias, so
    it scores like a duplicate. The places of a unit in a flattened input count as more samples.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        moments: dict[int, dict[Axis, _Moments]] = {}

        def add(axis: Axis, row: UnitRow, x: Tensor) -> None:
            for group in structure.groups:
                units, places = occurrences(row, group)
                if not len(units):
                    continue
                of_group = moments.setdefault(group.start, {})
                if axis not in of_group:
                    of_group[axis] = _Moments(units)
                of_group[axis].add(x, torch.from_numpy(places).to(x.device))

        observe(model, structure, calibration, add)
        scores = np.zeros(structure.n_units)
        for group in structure.groups:
            if group.members:
                seen = list(moments[group.start].values())
                scores[group.start + seen[0].units] = _scores(group, seen)
        return scores


class _Moments:
    """Sums over samples of n units: their count, their values and their products."""

    def __init__(self, units: npt.NDArray[np.intp]) -> None:
        self.units = units
        self.count = 0
        self.values: Scores = np.zeros(len(units))
        self.products: Scores = np.zeros((len(units), len(units)))

    def add(self, x: Tensor, places: Tensor) -> None:
        for part in x.chunk(1 + x.numel() // _CHUNK):
            flat = part.movedim(1, 0)[places].reshape(len(places), -1).double()
            self.count += flat.shape[1]
            self.values = flat.sum(1).cpu().numpy() + self.values
            self.products = (flat @ flat.T).cpu().numpy() + self.products


def _scores(group: Group, seen: list[_Moments]) -> Scores:
    """The scores of a group's living units, from the moments at each of its consumers."""
    likenesses = []
    variances = []
    for moments in seen:
        likeness, variance = _correlations(moments)
        likenesses.append(likeness)
        variances.append(variance)
    return irreplaceable(combined(group, likenesses), np.sum(variances, axis=0))


def _correlations(moments: _Moments) -> tuple[Scores, Scores]:
    """|correlation|, shape (n, n), with 1 for constant units, and the variances, shape (n,)."""
    mean = moments.values / moments.count
    mean_products = moments.products / moments.count
    covariance = mean_products - np.outer(mean, mean)
    variance = covariance.diagonal().copy()
    constant = variance <= _CONSTANT * moments.products.diagonal() / moments.count
    variance[constant] = 0.0
    deviation = np.sqrt(np.where(constant, 1.0, variance))
    correlation = covariance / np.outer(deviation, deviation)
    likeness = np.minimum(np.abs(correlation), 1.0)
    likeness[constant, :] = 1.0
    likeness[:, constant] = 1.0
    return likeness, variance
