"""Magnitude of the weights that produce a unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores

_COMBINE: dict[str, Callable[..., Scores]] = {
    "mean": np.mean,
    "sum": np.sum,
    "max": np.max,
    "first": lambda values, axis: values[0],
}


@dataclass(frozen=True)
class Magnitude:
    """Lp norm of each unit's producing weights (Li et al. 2017, section 3.1, for p = 1); p = inf takes the largest.

    A coupled group has several producers: each gives a norm per unit, and `combine` makes one score of them.
    """

    p: float = 2.0
    combine: Literal["mean", "sum", "max", "first"] = "mean"

    def __post_init__(self) -> None:
        if self.p <= 0.0:
            raise ConfigError(f"method.criterion.p must be above 0 (1, 2 or inf are usual); got {self.p}")
        if self.combine not in _COMBINE:
            raise ConfigError(f"method.criterion.combine must be one of {list(_COMBINE)}; got '{self.combine}'")

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        tensors = dict(model.named_parameters())
        scores = np.zeros(structure.n_units)
        for group in structure.groups:
            norms = self._norms(tensors, structure, group)
            if len(norms):
                scores[group.units] = _COMBINE[self.combine](norms, axis=0)
        return scores

    def _norms(self, tensors: dict[str, nn.Parameter], structure: Structure, group: Group) -> Scores:
        """One row per producing weight; shape (producers, group.size)."""
        rows = []
        for member in group.members:
            weight = tensors.get(member.tensor)
            if member.role != "out" or weight is None or weight.dim() < 2:
                continue
            ids = structure.table[member.tensor, member.dim]
            flat = weight.detach().double().movedim(member.dim, 0).flatten(1).abs()
            per_position = (flat.amax(1) if self.p == float("inf") else flat.pow(self.p).sum(1)).cpu().numpy()
            mine = (ids >= group.start) & (ids < group.start + group.size)
            row = np.zeros(group.size)
            gather = np.maximum.at if self.p == float("inf") else np.add.at
            gather(row, ids[mine] - group.start, per_position[mine])
            rows.append(row if self.p == float("inf") else row ** (1.0 / self.p))
        return np.array(rows)
