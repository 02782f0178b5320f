"""Redundancy of weights: units that point the same way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import combined, producing, vectors
from lightning_modules.pruning.criteria.redundancy import irreplaceable
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Cosine:
    """1 - max |cosine| between a unit's producing weights and those of a unit with a larger norm.

    Opposite units count as alike: the consumer's sign undoes it where the nonlinearity is odd or absent. The
    cosines of coupled layers are averaged before the maximum, so that one partner must stand in everywhere. A zero
    unit is replaced by anything: it scores like a duplicate. Memory: the square of a group's size per layer.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        tensors, scores = dict(model.named_parameters()), np.zeros(structure.n_units)
        for group in structure.groups:
            cosines, strength = [], np.zeros(0)
            units = np.zeros(0, dtype=np.intp)
            for member in producing(group, tensors):
                units, weights = vectors(
                    structure, group, (member.tensor, member.dim), tensors[member.tensor]
                )
                norms = weights.norm(dim=1)
                nothing = norms == 0.0
                directions = weights / norms.masked_fill(nothing, 1.0)[:, None]
                cosine = (directions @ directions.T).abs().clamp(max=1.0)
                cosine.masked_fill_(nothing[:, None] | nothing[None, :], 1.0)
                cosines.append(cosine.cpu().numpy())
                strength = norms.square().cpu().numpy() + (strength if len(strength) else 0.0)
            if group.members:
                scores[group.start + units] = irreplaceable(combined(group, cosines), strength)
        return scores
