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
from lightning_modules.pruning.structure import Keep, Structure


class Penalty(Protocol):
    """A scalar to be added to the loss; `structure` is that of `model`, `keep` what the plan will leave."""

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor: ...


def _positive(weight: float) -> None:
    if not weight > 0.0:
        raise ConfigError(
            f"phases.sparsify.penalty.weight must be above 0 (1e-4 is usual); got {weight}"
        )


@dataclass(frozen=True)
class GroupLasso:
    """weight x sum over units of sqrt(n_u) times the L2 norm of their producing weights (Wen et al. 2016, eq. 2)."""

    weight: float = 1e-4

    def __post_init__(self) -> None:
        _positive(self.weight)

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor:
        squares, elements = _squares(model, structure)
        return self.weight * (elements.sqrt() * (squares + 1e-12).sqrt()).sum()


@dataclass(frozen=True)
class NormScale:
    """weight x sum of |gamma| over the norm layers' scales of all units (Liu et al. 2017, eq. 1)."""

    weight: float = 1e-3

    def __post_init__(self) -> None:
        _positive(self.weight)

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor:
        sizes = []
        for name, scale in norm_scales(model).items():
            if (row := structure.table.get((name, 0))) is not None:
                sizes.append(scale.abs()[torch.from_numpy(row >= 0).to(scale.device)].sum())
        if not sizes:
            raise ConfigError(
                "NormScale needs norm layers with scales over prunable units; the model has none: take GroupLasso"
            )
        return self.weight * torch.stack(sizes).sum()


@dataclass(frozen=True)
class Growing:
    """Half an L2 penalty on the units that will go, growing linearly to `weight` (Wang et al. 2021, GReg-1)."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        _positive(self.weight)

    def __call__(
        self, model: nn.Module, structure: Structure, keep: Keep, progress: float
    ) -> Tensor:
        squares, _ = _squares(model, structure)
        doomed = torch.from_numpy(~keep).to(squares)
        return 0.5 * self.weight * progress * (doomed * squares).sum()


def _squares(model: nn.Module, structure: Structure) -> tuple[Tensor, Tensor]:
    """Sum of squares and number of the producing weights of each unit; both of shape (n_units,).

    Errors: ConfigError where no unit has any.
    """
    tensors = dict(model.named_parameters())
    axes = dict.fromkeys(
        (m.tensor, m.dim) for group in structure.groups for m in producing(group, tensors)
    )
    if not axes:
        raise ConfigError(
            "a penalty on units needs units with weights that produce them; see job=inspect for why not"
        )
    like = tensors[next(iter(axes))[0]]
    squares = torch.zeros(structure.n_units, dtype=like.dtype, device=like.device)
    elements = np.zeros(structure.n_units)
    for name, dim in axes:
        weight, row = tensors[name], structure.table[name, dim]
        mine = np.flatnonzero(row >= 0)
        each = weight.movedim(dim, 0).flatten(1).square().sum(1)
        ids = torch.from_numpy(row[mine].astype(np.int64)).to(like.device)
        squares = squares.index_add(0, ids, each[torch.from_numpy(mine).to(like.device)])
        np.add.at(elements, row[mine], math.prod(weight.shape) / weight.shape[dim])
    return squares, torch.from_numpy(elements).to(squares)
