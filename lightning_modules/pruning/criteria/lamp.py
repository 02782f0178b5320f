"""LAMP: a weight's magnitude relative to those it would leave in its layer (Lee et al. 2021)."""

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
    """w_u^2 over the sum of w_v^2 of all v at least as large, within a tensor.

    Source: Lee et al. 2021, eq. 3. It is made for comparing layers with one another; within a layer
    its order is that of magnitude. For a unit, w_u^2 is the squared L2 norm of its producing
    weights, combined across coupled layers, and its group takes the place of the tensor. Equal
    values share a score, where the paper lets their order decide. Zeros score 0, even where
    everything is zero.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        tensors = dict(model.named_parameters())
        scores = np.zeros(structure.n_units)
        for group in structure.groups:
            if not group.members:
                continue
            rows = []
            for member in producing(group, tensors):
                squares = _squares(tensors[member.tensor])
                rows.append(per_unit(structure, group, member, squares))
            norms = torch.from_numpy(combined(group, rows))
            scores[group.units] = share_of_rest(norms).numpy()
        return scores

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        shares = {}
        for name, weight in named(model, names).items():
            squares = _squares(weight).flatten()
            shares[name] = share_of_rest(squares).reshape(weight.shape)
        return as_scores(model, shares)


def _squares(weight: Tensor) -> Tensor:
    return weight.detach().double().square()


def share_of_rest(squares: Tensor) -> Tensor:
    """Each value over the sum of all values at least as large; shape (n,)."""
    ordered, order = squares.sort()
    rest = ordered.flip(0).cumsum(0).flip(0)
    # the search puts a NaN beyond the end
    first_of_equals = torch.searchsorted(ordered, ordered).clamp(max=len(ordered) - 1)
    shares = ordered / torch.where(ordered == 0.0, 1.0, rest[first_of_equals])
    return torch.empty_like(shares).scatter_(0, order, shares)
