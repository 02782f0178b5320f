"""Scores units by the size of the gradient, which is how far training would still move them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import mean_gradients
from lightning_modules.pruning.criteria.members import named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Gradient:
    """The sum of |g| over the unit's producing weights, with g the mean gradient of all batches.

    A single weight scores |g|. Biases and norms do not count. Weights that are well trained have
    little gradient and score low.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return of_units(_sizes, model, structure, calibration)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        return of_weights(_sizes, model, names, calibration)


def _sizes(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    with scoring(model, calibration.seed):
        gradients = mean_gradients(model, named(model, names), calibration)
    return {name: gradient.abs() for name, gradient in gradients.items()}
