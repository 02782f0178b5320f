"""What the loss says when a unit is really gone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lightning_modules.errors import ConfigError
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
    """Increase of the mean loss when the unit goes: exact for one unit, blind to what several do together.

    Costs one pass over all batches per unit. With `slice` above 1, that many units of the group with adjacent L2
    norms go together and share the increase equally. Groups whose masks are exact are zeroed on a copy, the others
    physically cut; the last unit of a group is always zeroed. Scores may be negative: the loss fell.
    """

    slice: int = 1

    def __post_init__(self) -> None:
        if self.slice < 1:
            raise ConfigError(
                f"method.criterion.slice must be at least 1 unit; got {self.slice}; 1 is exact"
            )

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        norms, alive = Magnitude(2.0)(model, structure, calibration), living(structure)
        scores = np.zeros(structure.n_units)
        twin = copy.deepcopy(model)
        full = mean_loss(twin, calibration)
        for group in structure.groups:
            units = group.start + np.flatnonzero(alive[group.units])
            if not group.members or not len(units):
                continue
            # never the whole group at once: what is left must be a model
            parts = max(math.ceil(len(units) / self.slice), min(2, len(units)))
            for part in np.array_split(units[np.argsort(norms[units], kind="stable")], parts):
                scores[part] = (
                    self._without(twin, structure, group, part, calibration) - full
                ) / len(part)
        return scores

    def _without(
        self,
        twin: nn.Module,
        structure: Structure,
        group: Group,
        units: npt.NDArray[np.intp],
        calibration: Calibration,
    ) -> float:
        """Mean loss without `units`; `twin` is as before afterwards."""
        keep = structure.full()
        keep[units] = False
        if not group.mask_exact and (living(structure) & keep)[group.units].any():
            return mean_loss(remove(twin, structure, keep), calibration)
        tensors = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        saved = {m.tensor: tensors[m.tensor].detach().clone() for m in group.members}
        zero(twin, structure, keep)
        loss = mean_loss(twin, calibration)
        with torch.no_grad():
            for name, values in saved.items():
                tensors[name].copy_(values)
        return loss


def mean_loss(model: nn.Module, calibration: Calibration) -> float:
    """Mean of the batches' losses in eval mode."""
    with scoring(model, calibration.seed), torch.no_grad():
        return float(
            np.mean(
                [float(calibration.loss(model, batch)) for batch in require_batches(calibration)]
            )
        )
