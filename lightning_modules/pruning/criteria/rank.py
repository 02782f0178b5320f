"""The rank of a unit's feature maps (Lin et al. 2020, HRank)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.criteria.activation import averages
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Rank:
    """Mean rank of the unit's maps as its consumers see them (Lin et al. 2020, eq. 5), in 0 ... min(height, width).

    Singular values above `tolerance` times the largest count. The first `images` samples of every batch are looked
    at, since each map costs a singular value decomposition. Without a map of two dimensions (tokens, vectors, a
    flattened input) the rank says nothing more than zero or not: the share of values that are not zero stands in.
    """

    images: int = 8
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(
                f"method.criterion.images must be at least 1; got {self.images}; 8 is usual"
            )
        if not 0.0 < self.tolerance < 1.0:
            raise ConfigError(
                f"method.criterion.tolerance must lie between 0 and 1; got {self.tolerance}; try 1e-4"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return averages(model, structure, calibration, self._ranks)

    def _ranks(self, x: Tensor) -> tuple[Tensor, int]:
        if x.dim() < 4 or min(x.shape[-2:]) == 1:
            active = torch.where(x.isnan(), x, (x != 0.0).to(x.dtype)).transpose(0, 1).flatten(1)
            return active.sum(1, dtype=torch.float64), active.shape[1]
        maps = (
            x[: self.images].transpose(0, 1).flatten(2, -3)
            if x.dim() > 4
            else x[: self.images].transpose(0, 1)
        )
        # not a number would make the decomposition fail on some devices; it belongs into the score
        broken = ~maps.isfinite().all(-1).all(-1)
        ranks = torch.linalg.matrix_rank(
            maps.nan_to_num(0.0, 0.0, 0.0).float(), rtol=self.tolerance
        ).double()
        return ranks.masked_fill(broken, float("nan")).sum(1), maps.shape[1]
