"""Scores units by the magnitude of the weights that produce them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import (
    as_scores,
    named,
    per_group,
    per_unit,
    producing,
)
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Magnitude:
    """The Lp norm of each unit's producing weights; p = inf takes the largest.

    Source: Li et al. 2017, section 3.1, for p = 1. A coupled group has several producers: each
    gives a norm per unit, and their mean is the score. Biases and norms do not count. A single
    weight scores |w| (Han et al. 2015), whatever p is.
    Errors: ConfigError for a p that is not above 0.
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        if not self.p > 0.0:
            raise ConfigError(
                f"method.criterion.p must be above 0 (1, 2 or inf are usual); got {self.p}"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        tensors = dict(model.named_parameters())

        def norms(group: Group) -> list[Scores]:
            rows = []
            for member in producing(group, tensors):
                size = tensors[member.tensor].detach().double().abs()
                if self.p == float("inf"):
                    row = per_unit(structure, group, member, size, "max")
                else:
                    total = per_unit(structure, group, member, size**self.p)
                    row = np.power(total, 1.0 / self.p)
                rows.append(row)
            return rows

        return per_group(structure, norms)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        sizes = {name: weight.detach().abs() for name, weight in named(model, names).items()}
        return as_scores(model, sizes)
