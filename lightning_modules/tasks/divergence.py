"""How far a pruned model's outputs are from the dense model's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

LEAST_SHARE = 1e-3
"""Least variance of dense outputs, as a share of their mean square.

Errors of outputs that hardly vary are measured against this.
"""
LEAST_SCALE = 1e-12
"""Least variance of dense outputs that are zero, in their own scale squared."""


def softened_kl(outputs: Tensor, dense: Tensor, temperature: float = 1.0, dim: int = 1) -> Tensor:
    """T^2 x KL(dense || outputs) per sample, both softened by the temperature T.

    `dim` is the dimension of the classes; every other dimension counts as samples.
    Source: Hinton et al. 2015, section 2.
    """
    student = _log_probabilities(outputs, temperature, dim)
    teacher = _log_probabilities(dense, temperature, dim)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature * temperature * divergence


def _log_probabilities(logits: Tensor, temperature: float, dim: int) -> Tensor:
    """Shape (samples, classes)."""
    softened = F.log_softmax(logits / temperature, dim)
    return softened.movedim(dim, -1).flatten(0, -2)


def squared_error(outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
    """The mean squared error of each floating-point tensor, averaged over the tensors.

    Each error is in multiples of the tensor's variance in the dense outputs. The temperature
    softens class probabilities and has no effect here.
    """
    errors = []
    pairs = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(dense), strict=True)
    for values, dense_values in pairs:
        if isinstance(values, Tensor) and values.is_floating_point():
            error = (values - dense_values).square().mean()
            errors.append(error / _spread(dense_values))
    if not errors:
        return torch.zeros(())
    return torch.stack(errors).mean()


def _spread(values: Tensor) -> Tensor:
    """The variance, at least the small values above."""
    least = (LEAST_SHARE * values.square().mean()).clamp_min(LEAST_SCALE)
    return torch.maximum(values.var(correction=0), least)
