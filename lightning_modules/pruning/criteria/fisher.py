"""The second-order change of the loss, with the diagonal Fisher information as its curvature."""

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
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Fisher:
    """The sum over the unit's elements of 1/2 * mean(g^2) * w^2.

    Source: LeCun et al. 1990, eq. 5, with the Fisher information for the Hessian. Weight, bias,
    norm scale and norm shift all count, layer by layer; the score is the mean of the layers. The
    mean is over batches, not over samples: more and smaller batches come closer to the Fisher
    information. Near a minimum first-order criteria say little, and this one still does.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        names = producing_names(structure, dict(model.named_parameters()), dims=1)
        values = _saliencies(model, names, calibration)

        def rows(group: Group) -> list[Scores]:
            return list(layer_sums(structure, group, values).values())

        return per_group(structure, rows)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        values = _saliencies(model, names, calibration)
        require_all(values, names)
        return as_scores(model, values)


def _saliencies(
    model: nn.Module, names: Sequence[str], calibration: Calibration
) -> dict[str, Tensor]:
    """1/2 * mean(g^2) * w^2 of every element, by parameter."""
    wanted = named(model, names)
    mean_squares: dict[str, Tensor] = {}
    with scoring(model, calibration.seed):
        for gradients in per_batch(model, wanted, calibration):
            squares = {name: gradient.double().square() for name, gradient in gradients.items()}
            accumulate(mean_squares, squares, 1.0 / len(calibration.batches))
    saliencies = {}
    for name, mean_square in mean_squares.items():
        weight = wanted[name].detach().double()
        saliencies[name] = 0.5 * mean_square * weight.square()
    return saliencies
