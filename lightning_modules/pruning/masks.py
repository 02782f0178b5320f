"""Masks: units set to zero in place, both where they are produced and where they are consumed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.clone import copied
from lightning_modules.pruning.structure import Keep, Structure, dropped


def zero(model: nn.Module, structure: Structure, keep: Keep) -> None:
    """Zero, in place, every slice of the units not kept, and all parameters of dropped blocks.

    `structure` is that of `model`.
    Errors: PlanError if `keep` is not over the units of the dense model.
    """
    if keep.shape != (structure.n_units,):
        raise PlanError(
            "keep must be one boolean per unit of the dense model, shape "
            f"({structure.n_units},); got {keep.shape}"
        )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for (name, dim), row in structure.table.items():
            removed = np.flatnonzero((row >= 0) & ~keep[row])
            if len(removed):
                tensor = tensors[name]
                index = torch.from_numpy(removed).to(tensor.device)
                tensor.index_fill_(dim, index, 0)
        for path in dropped(structure, keep):
            for parameter in model.get_submodule(path).parameters():
                parameter.zero_()


def masked(model: nn.Module, structure: Structure, keep: Keep) -> nn.Module:
    """A copy of `model` with the dropped units at zero.

    If all groups are `mask_exact`, it computes what the model after removal computes.
    """
    twin = copied(model)
    zero(twin, structure, keep)
    return twin
