"""Recalibration: refresh batch norms' statistics on training data, without gradients (Li et al. 2020, EagleEye)."""

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
    """Running mean and variance become the plain average over `count` batches; nothing else of the model changes."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms or count == 0:
        return
    momenta, modes = (
        [norm.momentum for norm in norms],
        {module: module.training for module in model.modules()},
    )
    model.to(device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for batch in islice(batches, count):
            batch.to(device).call(model)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
