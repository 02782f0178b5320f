"""What the loss says when a whole residual block is gone."""

from __future__ import annotations

import numpy as np
from torch import nn

from lightning_modules.pruning.criteria.ablation import mean_loss
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


def block_scores(model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
    """Increase of the mean loss when that one block is removed, 0 for every other unit; shape (n_units,).

    Costs one pass over all batches per block that `model` still has. Negative where the loss fell.
    """
    scores = np.zeros(structure.n_units)
    blocks = [
        group
        for group in structure.groups
        if group.kind == "block" and _is_there(model, group.name)
    ]
    if not blocks:
        return scores
    full = mean_loss(model, calibration)
    for group in blocks:
        keep = structure.full()
        keep[group.units] = False
        scores[group.units] = mean_loss(remove(model, structure, keep), calibration) - full
    return scores


def _is_there(model: nn.Module, path: str) -> bool:
    return not isinstance(model.get_submodule(path), nn.Identity)
