"""Scores units by how little their weights point along those of another unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import combined, producing, vectors
from lightning_modules.pruning.criteria.redundancy import irreplaceable
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Cosine:
    """1 - max |cosine| between a unit's producing weights and those of a unit with a larger norm.

    Opposite units count as alike, because the consumer can change the sign where the nonlinearity
    is odd or absent. The cosines of coupled layers are averaged before the maximum, so that one
    partner must replace the unit in all of them. A zero unit can be replaced by any other, so it
    scores like a duplicate. It takes memory for the square of a group's size per layer.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        tensors = dict(model.named_parameters())
        scores = np.zeros(structure.n_units)
        for group in structure.groups:
            if not group.members:
                continue
            cosines = []
            strength = np.zeros(1)
            units = np.zeros(0, dtype=np.intp)
            for member in producing(group, tensors):
                axis = (member.tensor, member.dim)
                units, weights = vectors(structure, group, axis, tensors[member.tensor])
                norms = weights.norm(dim=1)
                cosines.append(_cosines(weights, norms).cpu().numpy())
                strength = norms.square().cpu().numpy() + strength
            likeness = combined(group, cosines)
            scores[group.start + units] = irreplaceable(likeness, strength)
        return scores


def _cosines(weights: Tensor, norms: Tensor) -> Tensor:
    """|cosine| of each pair of rows, shape (n, n), with 1 for rows of zeros."""
    is_zero = norms == 0.0
    directions = weights / norms.masked_fill(is_zero, 1.0)[:, None]
    cosines = (directions @ directions.T).abs().clamp(max=1.0)
    return cosines.masked_fill_(is_zero[:, None] | is_zero[None, :], 1.0)
