"""The scale of the normalisation that a unit passes (Liu et al. 2017, Network Slimming)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.magnitude import Magnitude
from lightning_modules.pruning.criteria.members import per_group, per_unit
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class BnScale:
    """|gamma| of the unit's norm layers, averaged over the unit's channels (Liu et al. 2017, section 3).

    Says most of a net trained with an L1 penalty on gamma. Batch, instance, group, layer and RMS norms count, and
    any module with Norm in its name. A group without scales falls back on the L2 norm of its producing weights in
    multiples of the group's mean, so that it has the magnitude of a fresh gamma.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        scales = norm_scales(model)
        norms = Magnitude(2.0)(model, structure, calibration)

        def rows(group: Group) -> list[Scores]:
            found = []
            for member in group.members:
                if member.tensor in scales and member.role == "out":
                    row = structure.table[member.tensor, member.dim]
                    mine = (
                        row[(row >= group.start) & (row < group.start + group.size)] - group.start
                    )
                    total = per_unit(structure, group, member, scales[member.tensor].abs())
                    found.append(total / np.maximum(np.bincount(mine, minlength=group.size), 1))
            return found or [_in_multiples_of_the_mean(norms[group.units])]

        return per_group(structure, rows)


def norm_scales(model: nn.Module) -> dict[str, Tensor]:
    """The one-dimensional `weight` of every norm layer by name, also where it is a frozen buffer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _NORMS) or "Norm" in type(module).__name__:
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 1:
                found[f"{name}.weight" if name else "weight"] = weight
    return found


def _in_multiples_of_the_mean(norms: Scores) -> Scores:
    present = norms[norms != 0.0]
    return norms / np.mean(present) if len(present) else norms
