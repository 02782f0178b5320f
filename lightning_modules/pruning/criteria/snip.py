"""Scores weights by connection sensitivity (Lee et al. 2019, SNIP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import mean_gradients
from lightning_modules.pruning.criteria.members import named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Snip:
    """|g * w| over its sum over all scored weights, with g the mean gradient of all batches.

    Source: Lee et al. 2019, eq. 4-5. It is meant for a network at initialisation. A unit takes the
    sum over its producing weights; biases and norms do not count.
    Errors: PlanError, when called, if |g * w| is 0 everywhere.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return of_units(_shares, model, structure, calibration)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        return of_weights(_shares, model, names, calibration)


def _shares(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    wanted = named(model, names)
    with scoring(model, calibration.seed):
        gradients = mean_gradients(model, wanted, calibration)
    sizes = {}
    for name, gradient in gradients.items():
        sizes[name] = (gradient * wanted[name].detach()).abs()
    total = sum(float(size.sum()) for size in sizes.values())
    if total == 0.0:
        raise PlanError(
            "connection sensitivity needs some weight with w * gradient other than 0; here all are "
            "0; calibrate on other batches or take a criterion without gradients"
        )
    return {name: size / total for name, size in sizes.items()}
