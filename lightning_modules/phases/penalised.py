"""Adds the gradient of a penalty to the gradients of any task's training loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.errors import ConfigError


class Penalised(Callback):
    """Adds the penalty's gradient before each optimizer step.

    `penalty` maps (model, progress in [0, 1]) to a scalar.
    Errors: ConfigError, during training, for a penalty of frozen parameters only.
    """

    def __init__(self, penalty: Callable[[nn.Module, float], Tensor]) -> None:
        self.penalty = penalty

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        model: nn.Module = module.model  # type: ignore[assignment]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        progress = (trainer.global_step + 1) / max(1, trainer.max_steps)
        with torch.enable_grad():
            value = self.penalty(model, progress)
            if not value.requires_grad:
                raise ConfigError(
                    "a penalty needs parameters that are trained; all that it looks at are frozen"
                )
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad = parameter.grad + gradient
