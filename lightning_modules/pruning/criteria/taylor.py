"""The first-order change of the loss when a unit goes (Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import accumulate, per_batch, require_all
from lightning_modules.pruning.criteria.members import (
    as_scores,
    layer_sums,
    named,
    per_group,
    producing_names,
)
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Taylor:
    """Mean over batches of (sum of g * w over the unit's elements of a layer)^2 (Molchanov et al. 2019, eq. 8).

    Weight and bias of a layer are one sum, scale and shift of a norm another (the paper's gate behind batch norm):
    each is the first-order loss change when the layer lets the unit out as zero. The score is the mean of the layers.
    A single weight scores the mean over batches of (g * w)^2 (eq. 7).
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        parameters = dict(model.named_parameters())
        wanted = named(model, producing_names(structure, parameters, dims=1))
        squares: dict[int, dict[str, Scores]] = {
            index: {} for index in range(len(structure.groups))
        }
        with scoring(model, calibration.seed):
            for found in per_batch(model, wanted, calibration):
                products = {
                    name: gradient.double() * wanted[name].detach()
                    for name, gradient in found.items()
                }
                for index, group in enumerate(structure.groups):
                    for layer, change in layer_sums(structure, group, products).items():
                        squares[index][layer] = squares[index].get(layer, 0.0) + np.square(change)
        count, by_start = (
            len(calibration.batches),
            {g.start: i for i, g in enumerate(structure.groups)},
        )
        return per_group(
            structure, lambda group: [s / count for s in squares[by_start[group.start]].values()]
        )

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        wanted, total = named(model, names), dict[str, Tensor]()
        with scoring(model, calibration.seed):
            for found in per_batch(model, wanted, calibration):
                changes = {
                    name: (gradient.double() * wanted[name]).square()
                    for name, gradient in found.items()
                }
                accumulate(total, changes, 1.0 / len(calibration.batches))
        require_all(total, names)
        return as_scores(model, total)
