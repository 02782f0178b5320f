"""The first-order change of the loss when a unit is removed (Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Taylor:
    """The mean over batches of (sum of g * w over the unit's elements of a layer)^2.

    Source: Molchanov et al. 2019, eq. 8. Weight and bias of a layer are one sum; scale and shift of
    a norm are another, which is the paper's gate behind batch norm. Each sum is the first-order
    loss change when the layer outputs the unit as zero. The score is the mean of the layers. A
    single weight scores the mean over batches of (g * w)^2 (eq. 7).
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        parameters = dict(model.named_parameters())
        wanted = named(model, producing_names(structure, parameters, dims=1))
        squares: dict[str, dict[str, Scores]] = {group.name: {} for group in structure.groups}
        with scoring(model, calibration.seed):
            for gradients in per_batch(model, wanted, calibration):
                products = {}
                for name, gradient in gradients.items():
                    products[name] = gradient.double() * wanted[name].detach()
                for group in structure.groups:
                    _add_squares(squares[group.name], layer_sums(structure, group, products))
        count = len(calibration.batches)

        def rows(group: Group) -> list[Scores]:
            return [total / count for total in squares[group.name].values()]

        return per_group(structure, rows)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        wanted = named(model, names)
        total: dict[str, Tensor] = {}
        with scoring(model, calibration.seed):
            for gradients in per_batch(model, wanted, calibration):
                changes = {}
                for name, gradient in gradients.items():
                    changes[name] = (gradient.double() * wanted[name]).square()
                accumulate(total, changes, 1.0 / len(calibration.batches))
        require_all(total, names)
        return as_scores(model, total)


def _add_squares(total: dict[str, Scores], changes: Mapping[str, Scores]) -> None:
    for layer, change in changes.items():
        total[layer] = total.get(layer, 0.0) + np.square(change)
