"""Redundancy of activations: units that say the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import combined, occurrences
from lightning_modules.pruning.criteria.redundancy import irreplaceable
from lightning_modules.pruning.criteria.taps import Row, observe
from lightning_modules.pruning.structure import Axis, Structure
from lightning_modules.pruning.thresholds import Scores

_CHUNK = 2**22
"""Activations that are widened to double precision at a time: 32 MB."""
_CONSTANT = 1e-10
"""A variance below this share of the mean square is rounding."""


@dataclass(frozen=True)
class Correlation:
    """1 - max |correlation| of a unit's activations with those of a unit of larger variance.

    Over all batches, samples and places, as the consumers see them; only sums of products are held: the square of a
    group's size per consumer. The correlations at several consumers are averaged before the maximum. A constant
    unit is replaced by a bias: it scores like a duplicate. Places of a unit in a flattened input are more samples.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        moments: dict[tuple[int, Axis], _Moments] = {}

        def add(axis: Axis, row: Row, x: Tensor) -> None:
            for group in structure.groups:
                units, places = occurrences(row, group)
                if len(units):
                    held = moments.setdefault((group.start, axis), _Moments(units))
                    held.add(x, torch.from_numpy(places).to(x.device))

        observe(model, structure, calibration, add)
        scores = np.zeros(structure.n_units)
        for group in structure.groups:
            seen = [held for (start, _), held in moments.items() if start == group.start]
            if group.members:
                likeness, variances = zip(*(_correlations(held) for held in seen), strict=True)
                joined = combined(group, likeness)
                scores[group.start + seen[0].units] = irreplaceable(
                    joined, np.sum(variances, axis=0)
                )
        return scores


@dataclass
class _Moments:
    """Sums over samples of n units: count, values, products."""

    units: npt.NDArray[np.intp]
    count: int = 0
    values: Scores = field(default_factory=lambda: np.zeros(0))
    products: Scores = field(default_factory=lambda: np.zeros(0))

    def add(self, x: Tensor, places: Tensor) -> None:
        for part in x.chunk(1 + x.numel() // _CHUNK):
            flat = part.movedim(1, 0)[places].reshape(len(places), -1).double()
            self.count += flat.shape[1]
            self.values = flat.sum(1).cpu().numpy() + (self.values if len(self.values) else 0.0)
            self.products = (flat @ flat.T).cpu().numpy() + (
                self.products if len(self.products) else 0.0
            )


def _correlations(held: _Moments) -> tuple[Scores, Scores]:
    """|correlation|, shape (n, n), with 1 for constant units, and the variances, shape (n,)."""
    mean = held.values / held.count
    covariance = held.products / held.count - np.outer(mean, mean)
    variance = covariance.diagonal().copy()
    constant = variance <= _CONSTANT * held.products.diagonal() / held.count
    variance[constant] = 0.0
    spread = np.sqrt(np.where(constant, 1.0, variance))
    likeness = np.minimum(np.abs(covariance / np.outer(spread, spread)), 1.0)
    likeness[constant, :] = 1.0
    likeness[:, constant] = 1.0
    return likeness, variance
