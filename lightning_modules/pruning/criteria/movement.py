"""Movement: weights that training moves towards zero score low (Sanh et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.clone import copied
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import accumulate, mean_gradients
from lightning_modules.pruning.criteria.members import floating, named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Movement:
    """-sum over steps of w_t * g_t along plain gradient descent on a copy (Sanh et al. 2020, eq.
    4).

    Each of the `steps` takes the mean gradient of all batches, so that their order does not matter.
    It moves every parameter by `lr` times that gradient, frozen ones too; norms keep their
    statistics. A unit takes the sum over its producing weights. Scores have either sign: a dead
    unit scores 0, which is not the lowest score. Errors: ConfigError for values out of range;
    PlanError if the descent diverges.
    """

    steps: int = 4
    lr: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(
                f"method.criterion.steps must be at least 1; got {self.steps}; 4 is usual"
            )
        if not self.lr > 0.0:
            raise ConfigError(
                f"method.criterion.lr must be above 0; got {self.lr}; take that of finetuning"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return of_units(self._movements, model, structure, calibration)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        return of_weights(self._movements, model, names, calibration)

    def _movements(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        named(model, names)  # raises for unknown names
        twin = copied(model)
        moving = floating(twin)
        total: dict[str, Tensor] = {}
        with scoring(twin, calibration.seed):
            finite = True
            for step in range(self.steps):
                gradients = mean_gradients(twin, moving, calibration)
                was_finite = finite
                finite = _all_finite(gradients)
                # gradients that are not finite in the first step are no fault of the descent
                if step and was_finite and not finite:
                    raise PlanError(
                        "gradient descent must stay finite; with method.criterion.lr "
                        f"{self.lr:g} it diverges in step {step + 1} of {self.steps}; lower it"
                    )
                accumulate(total, _products(names, moving, gradients), 1.0)
                self._descend(moving, gradients)
        return total

    @torch.no_grad()
    def _descend(self, moving: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            moving[name].sub_(self.lr * gradient.to(moving[name].dtype))


def _products(
    names: Sequence[str], weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """-w * g of the named weights that the loss reaches."""
    products = {}
    for name in names:
        if name in gradients:
            products[name] = -weights[name].double() * gradients[name]
    return products


def _all_finite(gradients: Mapping[str, Tensor]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients.values())
