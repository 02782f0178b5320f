"""Movement: weights that training moves towards zero go (Sanh et al. 2020)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import accumulate, mean_gradients
from lightning_modules.pruning.criteria.members import named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Movement:
    """-sum over steps of w_t * g_t (Sanh et al. 2020, eq. 4) along plain gradient descent on a copy.

    Each step takes the mean gradient of all batches, so their order does not matter, and moves every parameter,
    frozen ones too; norms keep their statistics. A unit sums over its producing weights. Scores have either sign:
    0, what a dead unit scores, is not the lowest.
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
        named(model, names)
        twin, total = copy.deepcopy(model), dict[str, Tensor]()
        moving = {name: p for name, p in twin.named_parameters() if p.is_floating_point()}
        with scoring(twin, calibration.seed):
            sound = True
            for step in range(self.steps):
                found = mean_gradients(twin, moving, calibration)
                before, sound = (
                    sound,
                    all(bool(gradient.isfinite().all()) for gradient in found.values()),
                )
                if step and before and not sound:
                    raise PlanError(
                        f"gradient descent must stay finite; with method.criterion.lr {self.lr:g} it diverges in step "
                        f"{step + 1} of {self.steps}; lower it"
                    )
                accumulate(
                    total, {n: -moving[n].double() * found[n] for n in names if n in found}, 1.0
                )
                with torch.no_grad():
                    for name, gradient in found.items():
                        moving[name].sub_(self.lr * gradient.to(moving[name].dtype))
        return total
