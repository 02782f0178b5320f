"""Scores units by the scale of their normalisation (Liu et al. 2017, Network Slimming)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.magnitude import Magnitude
from lightning_modules.pruning.criteria.members import per_group, per_unit
from lightning_modules.pruning.structure import Group, Member, Structure
from lightning_modules.pruning.thresholds import Scores

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class BnScale:
    """|gamma| of the unit's norm layers, averaged over the unit's channels.

    Source: Liu et al. 2017, section 3. It tells most about a network that was trained with an L1
    penalty on gamma. Batch, instance, group, layer and RMS norms count, and any module with Norm in
    its name. A group without scales takes the L2 norm of its producing weights instead, in
    multiples of the group's mean, so that it has the magnitude of a fresh gamma.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        scales = norm_scales(model)
        norms = Magnitude(2.0)(model, structure, calibration)

        def rows(group: Group) -> list[Scores]:
            means = []
            for member in group.members:
                if member.tensor in scales and member.role == "out":
                    means.append(_mean_scale(structure, group, member, scales[member.tensor]))
            return means or [_in_multiples_of_the_mean(norms[group.units])]

        return per_group(structure, rows)


def _mean_scale(structure: Structure, group: Group, member: Member, scale: Tensor) -> Scores:
    """The mean |scale| of each unit's channels, shape (group.size,); 0 for units without any."""
    row = structure.table[member.tensor, member.dim]
    units = row[group.among(row)] - group.start
    channels = np.bincount(units, minlength=group.size)
    total = per_unit(structure, group, member, scale.abs())
    return total / np.maximum(channels, 1)


def norm_scales(model: nn.Module) -> dict[str, Tensor]:
    """The one-dimensional `weight` of every norm layer by name, even if it is a frozen buffer."""
    scales = {}
    for name, module in model.named_modules():
        if isinstance(module, _NORMS) or "Norm" in type(module).__name__:
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 1:
                path = f"{name}.weight" if name else "weight"
                scales[path] = weight
    return scales


def _in_multiples_of_the_mean(norms: Scores) -> Scores:
    """Norms over the mean of those that are not 0."""
    present = norms[norms != 0.0]
    return norms / np.mean(present) if len(present) else norms
