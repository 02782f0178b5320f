"""Scores units by their distance from the geometric median of a layer (He et al. 2019, FPGM)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import per_group, producing, vectors
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class GeometricMedian:
    """The sum of Euclidean distances to all other units of the layer, on signed weights.

    Source: He et al. 2019, eq. 7. The other units can best replace those nearest to the geometric
    median. Biases and norms do not count. A dead unit often lies near the median, but need not: if
    all others are on one side, it is the farthest.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        tensors = dict(model.named_parameters())

        def distances(group: Group) -> list[Scores]:
            rows = []
            for member in producing(group, tensors):
                axis = (member.tensor, member.dim)
                units, weights = vectors(structure, group, axis, tensors[member.tensor])
                row = np.zeros(group.size)
                row[units] = torch.cdist(weights, weights).sum(1).cpu().numpy()
                rows.append(row)
            return rows

        return per_group(structure, distances)
