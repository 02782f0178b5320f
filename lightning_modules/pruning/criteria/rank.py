"""Scores units by the rank of their feature maps (Lin et al. 2020, HRank)."""

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
    """The mean rank of the unit's maps as its consumers see them, in 0 ... min(height, width).

    Source: Lin et al. 2020, eq. 5. Singular values above `tolerance` times the largest count. Only
    the first `images` samples of every batch are used, since each map costs a singular value
    decomposition. Without maps of two dimensions (tokens, vectors, a flattened input) a rank would
    only say whether a value is zero: the score is the share of values that are not zero instead.
    Errors: ConfigError for values out of range.
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
                "method.criterion.tolerance must lie between 0 and 1; "
                f"got {self.tolerance}; try 1e-4"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return averages(model, structure, calibration, self._ranks)

    def _ranks(self, x: Tensor) -> tuple[Tensor, int]:
        """The sum of ranks per position, shape (positions,), and the number of maps."""
        if x.dim() < 4 or min(x.shape[-2:]) == 1:
            return _nonzeros(x)
        maps = x[: self.images].transpose(0, 1)
        if maps.dim() > 4:
            maps = maps.flatten(2, -3)
        # a NaN would make the decomposition fail on some devices; it belongs into the score
        broken = ~maps.isfinite().all(-1).all(-1)
        finite = maps.nan_to_num(0.0, 0.0, 0.0).float()
        ranks = torch.linalg.matrix_rank(finite, rtol=self.tolerance).double()
        flat = ranks.masked_fill(broken, float("nan"))
        return flat.sum(1), maps.shape[1]


def _nonzeros(x: Tensor) -> tuple[Tensor, int]:
    """The number of values that are not zero, per position, and the number of values."""
    nonzero = (x != 0.0).to(x.dtype)
    active = torch.where(x.isnan(), x, nonzero).transpose(0, 1).flatten(1)
    return active.sum(1, dtype=torch.float64), active.shape[1]
