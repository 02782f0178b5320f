"""Penalties that train units towards zero before they are removed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.criteria.bn_scale import norm_scales
from lightning_modules.pruning.criteria.members import producing
from lightning_modules.pruning.structure import Axis, Keep, Structure

LEAST_SQUARE = 1e-12
"""Added below the root of a norm, whose gradient at zero is not finite."""


class Penalty(Protocol):
    """A scalar that is added to the loss.

    `structure` is that of `model`; `keep` is what the plan will leave; `progress` lies in [0, 1].
    """

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor: ...


def _require_positive(weight: float) -> None:
    if not weight > 0.0:
        raise ConfigError(
            f"phases.sparsify.penalty.weight must be above 0 (1e-4 is usual); got {weight}"
        )


@dataclass(frozen=True)
class GroupLasso:
    """weight x sum over units of sqrt(n_u) times the L2 norm of their n_u producing weights.

    Source: Wen et al. 2016, eq. 2.
    """

    weight: float = 1e-4

    def __post_init__(self) -> None:
        _require_positive(self.weight)

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor:
        squares, elements = _squares(model, structure)
        norms = (squares + LEAST_SQUARE).sqrt()
        return self.weight * (elements.sqrt() * norms).sum()


@dataclass(frozen=True)
class NormScale:
    """weight x sum of |gamma| over the norm layers' scales of all units (Liu et al. 2017, eq. 1).

    Errors: ConfigError, when called, for a model without norm layers over prunable units.
    """

    weight: float = 1e-3

    def __post_init__(self) -> None:
        _require_positive(self.weight)

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor:
        sums = []
        for name, scale in norm_scales(model).items():
            row = structure.table.get((name, 0))
            if row is not None:
                prunable = torch.from_numpy(row >= 0).to(scale.device)
                sums.append(scale.abs()[prunable].sum())
        if not sums:
            raise ConfigError(
                "NormScale needs norm layers with scales over prunable units; the model has none: "
                "take GroupLasso"
            )
        return self.weight * torch.stack(sums).sum()


@dataclass(frozen=True)
class Growing:
    """Half an L2 penalty on the units that will go, growing linearly to `weight`.

    Source: Wang et al. 2021, GReg-1.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self.weight)

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor:
        squares, _ = _squares(model, structure)
        removed = torch.from_numpy(~keep).to(squares)
        return 0.5 * self.weight * progress * (removed * squares).sum()


def _squares(model: nn.Module, structure: Structure) -> tuple[Tensor, Tensor]:
    """Sum of squares and number of the producing weights of each unit; both of shape (n_units,).

    Errors: ConfigError if no unit has any.
    """
    tensors = dict(model.named_parameters())
    axes: dict[Axis, None] = {}
    for group in structure.groups:
        for member in producing(group, tensors):
            axes[member.tensor, member.dim] = None
    if not axes:
        raise ConfigError(
            "a penalty on units needs units with weights that produce them; see job=inspect for "
            "why not"
        )
    like = tensors[next(iter(axes))[0]]
    squares = torch.zeros(structure.n_units, dtype=like.dtype, device=like.device)
    elements = np.zeros(structure.n_units)
    for name, dim in axes:
        weight = tensors[name]
        row = structure.table[name, dim]
        positions = np.flatnonzero(row >= 0)
        units = row[positions].astype(np.int64)
        each = weight.movedim(dim, 0).flatten(1).square().sum(1)
        prunable = each[torch.from_numpy(positions).to(like.device)]
        squares = squares.index_add(0, torch.from_numpy(units).to(like.device), prunable)
        np.add.at(elements, units, math.prod(weight.shape) / weight.shape[dim])
    return squares, torch.from_numpy(elements).to(squares)
