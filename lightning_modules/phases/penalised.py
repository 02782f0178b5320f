"""A penalty added to the training loss of any task, by way of its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.errors import ConfigError


class Penalised(Callback):
    """`penalty` maps (model, progress in [0, 1]) to a scalar; its gradient is added before each optimizer step."""

    def __init__(self, penalty: Callable[[nn.Module, float], Tensor]) -> None:
        self.penalty = penalty

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        model: nn.Module = module.model  # type: ignore[assignment]
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.enable_grad():
            value = self.penalty(model, (trainer.global_step + 1) / max(1, trainer.max_steps))
            if not value.requires_grad:
                raise ConfigError(
                    "a penalty needs parameters that are trained; all that it looks at are frozen"
                )
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
