"""How far a pruned model's outputs are from the dense model's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

LEAST_SHARE = 1e-3
"""Of the dense outputs' mean square: what outputs that hardly vary are measured against."""
LEAST_SCALE = 1e-12


def softened_kl(outputs: Tensor, dense: Tensor, temperature: float = 1.0, dim: int = 1) -> Tensor:
    """T^2 x KL(dense || outputs), both softened by the temperature T, per sample (Hinton et al. 2015, section 2).

    `dim` is the dimension of the classes; every other one counts as samples.
    """
    soft = F.log_softmax(outputs / temperature, dim).movedim(dim, -1).flatten(0, -2)
    wanted = F.log_softmax(dense / temperature, dim).movedim(dim, -1).flatten(0, -2)
    return (
        temperature * temperature * F.kl_div(soft, wanted, reduction="batchmean", log_target=True)
    )


def squared_error(outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
    """Mean squared error of every floating-point tensor, in multiples of its variance in the dense outputs; averaged.

    The temperature softens class probabilities and means nothing here.
    """
    pairs = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(dense), strict=True)
    errors = [
        (one - other).square().mean() / _spread(other)
        for one, other in pairs
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def _spread(values: Tensor) -> Tensor:
    least = (LEAST_SHARE * values.square().mean()).clamp_min(LEAST_SCALE)
    return torch.maximum(values.var(correction=0), least)
