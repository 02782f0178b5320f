"""Scores units by the loss without them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.clone import copied
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import require_batches
from lightning_modules.pruning.criteria.magnitude import Magnitude
from lightning_modules.pruning.criteria.members import living
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.masks import zero
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Ablation:
    """The increase of the mean loss when the unit is removed.

    It is exact for one unit, and does not see what several units do together. It costs one pass
    over all batches per unit. With `slice` above 1, that many units of a group with adjacent L2
    norms are removed together and share the increase equally. Groups whose masks are exact are
    zeroed on a copy; the others are physically cut, except that the last unit of a group is always
    zeroed. A score is negative if the loss fell.
    Errors: ConfigError for a `slice` below 1.
    """

    slice: int = 1

    def __post_init__(self) -> None:
        if self.slice < 1:
            raise ConfigError(
                f"method.criterion.slice must be at least 1 unit; got {self.slice}; 1 is exact"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        norms = Magnitude(2.0)(model, structure, calibration)
        alive = living(structure)
        scores = np.zeros(structure.n_units)
        twin = copied(model)
        full_loss = mean_loss(twin, calibration)
        for group in structure.groups:
            units = group.start + np.flatnonzero(alive[group.units])
            if not group.members or not len(units):
                continue
            by_norm = units[np.argsort(norms[units], kind="stable")]
            # a group is never removed as a whole: what is left must be a model
            n_parts = max(math.ceil(len(units) / self.slice), min(2, len(units)))
            for part in np.array_split(by_norm, n_parts):
                loss = self._without(twin, structure, group, part, calibration)
                scores[part] = (loss - full_loss) / len(part)
        return scores

    def _without(
        self,
        twin: nn.Module,
        structure: Structure,
        group: Group,
        units: npt.NDArray[np.intp],
        calibration: Calibration,
    ) -> float:
        """The mean loss without `units`. `twin` is changed only in between."""
        keep = structure.full()
        keep[units] = False
        if not group.mask_exact and (living(structure) & keep)[group.units].any():
            return mean_loss(remove(twin, structure, keep), calibration)
        tensors = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        saved = {}
        for member in group.members:
            saved[member.tensor] = tensors[member.tensor].detach().clone()
        zero(twin, structure, keep)
        loss = mean_loss(twin, calibration)
        with torch.no_grad():
            for name, values in saved.items():
                tensors[name].copy_(values)
        return loss


def mean_loss(model: nn.Module, calibration: Calibration) -> float:
    """The mean of the batches' losses in eval mode."""
    losses = []
    with scoring(model, calibration.seed), torch.no_grad():
        for batch in require_batches(calibration):
            losses.append(float(calibration.loss(model, batch)))
    return float(np.mean(losses))
