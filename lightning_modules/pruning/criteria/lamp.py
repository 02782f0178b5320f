"""LAMP: magnitude relative to what would be left of the layer (Lee et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import (
    as_scores,
    combined,
    named,
    per_unit,
    producing,
)
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Lamp:
    """w_u^2 over the sum of w_v^2 of all v at least as large, within a tensor (Lee et al. 2021, eq. 3).

    Made for comparing layers with each other: within one the order is that of magnitude. A unit takes its squared
    L2 norm (of producing weights, combined across coupled layers) for w_u^2, and its group for the tensor. Equal
    ones share a score, where the paper lets their order decide; zeros score 0, also where everything is zero.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        tensors, scores = dict(model.named_parameters()), np.zeros(structure.n_units)
        for group in structure.groups:
            if not group.members:
                continue
            rows = [
                per_unit(structure, group, m, tensors[m.tensor].detach().double().square())
                for m in producing(group, tensors)
            ]
            scores[group.units] = share_of_rest(torch.from_numpy(combined(group, rows))).numpy()
        return scores

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        squares = {
            name: weight.detach().double().square() for name, weight in named(model, names).items()
        }
        return as_scores(
            model, {n: share_of_rest(s.flatten()).reshape(s.shape) for n, s in squares.items()}
        )


def share_of_rest(squares: Tensor) -> Tensor:
    """Each value over the sum of all values at least as large; shape (n,)."""
    ordered, order = squares.sort()
    rest = ordered.flip(0).cumsum(0).flip(0)
    first_of_equals = torch.searchsorted(ordered, ordered).clamp(
        max=len(ordered) - 1
    )  # NaN is beyond the end
    shares = ordered / torch.where(ordered == 0.0, 1.0, rest[first_of_equals])
    return torch.empty_like(shares).scatter_(0, order, shares)
