"""Scores whole residual blocks by the loss without them."""

from __future__ import annotations

import numpy as np
from torch import nn

from lightning_modules.pruning.criteria.ablation import mean_loss
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.depth import PassThrough
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores


def block_scores(model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
    """The increase of the mean loss when that one block is removed; shape (n_units,).

    Every other unit scores 0. A score is negative if the loss fell. It costs one pass over all
    batches per block that `model` still has.
    """
    scores = np.zeros(structure.n_units)
    blocks = _present_blocks(model, structure)
    if not blocks:
        return scores
    full_loss = mean_loss(model, calibration)
    for block in blocks:
        keep = structure.full()
        keep[block.units] = False
        loss = mean_loss(remove(model, structure, keep), calibration)
        scores[block.units] = loss - full_loss
    return scores


def _present_blocks(model: nn.Module, structure: Structure) -> list[Group]:
    """The blocks that no identity has replaced."""
    blocks = []
    for group in structure.groups:
        if group.kind == "block" and not isinstance(model.get_submodule(group.name), PassThrough):
            blocks.append(group)
    return blocks
