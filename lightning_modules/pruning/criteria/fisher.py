"""The second-order change of the loss, with the diagonal of the Fisher information for its curvature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
class Fisher:
    """Sum over the unit's elements of 1/2 * mean(g^2) * w^2 (LeCun et al. 1990, eq. 5, with Fisher for Hessian).

    Weight, bias, norm scale and shift all count, layer by layer; the score is the mean of the layers. The mean is over
    batches, not samples: more and smaller batches come closer to the Fisher information. Near a minimum, where
    first-order criteria say little, this one still does.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        values = _saliencies(
            model, producing_names(structure, dict(model.named_parameters()), dims=1), calibration
        )
        return per_group(
            structure, lambda group: list(layer_sums(structure, group, values).values())
        )

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        values = _saliencies(model, names, calibration)
        require_all(values, names)
        return as_scores(model, values)


def _saliencies(
    model: nn.Module, names: Sequence[str], calibration: Calibration
) -> dict[str, Tensor]:
    wanted, total = named(model, names), dict[str, Tensor]()
    with scoring(model, calibration.seed):
        for found in per_batch(model, wanted, calibration):
            squares = {name: gradient.double().square() for name, gradient in found.items()}
            accumulate(total, squares, 1.0 / len(calibration.batches))
    return {
        name: 0.5 * square * wanted[name].detach().double().square()
        for name, square in total.items()
    }
