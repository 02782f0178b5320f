"""Recalibration: refreshing batch norms' statistics on training data, without gradients.

Source: Li et al. 2020 (EagleEye).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_modules.pruning.inputs import Inputs


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Inputs], count: int, device: torch.device
) -> None:
    """Set running means and variances to their plain averages over the first `count` batches.

    Nothing else of the model changes, except that it is moved to `device`.
    """
    norms = _tracking_norms(model)
    if not norms or count == 0:
        return
    momenta = [norm.momentum for norm in norms]
    modes = {module: module.training for module in model.modules()}
    model.to(device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: the plain average
        norm.train()
    try:
        for batch in islice(batches, count):
            batch.to(device).call(model)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _tracking_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics."""
    norms = []
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            norms.append(module)
    return norms
