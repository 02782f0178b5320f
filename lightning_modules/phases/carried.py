"""An optimizer's momenta and moments, taken along from one phase of training to the next."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from lightning_modules.pruning.optimizer import by_name, load_by_name


class Carried(Callback):
    """Begins with `state` (by parameter name, see optimizer.py; None for none) and leaves the state it ended with."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        model: nn.Module = module.model  # type: ignore[assignment]
        if self.state:
            load_by_name(trainer.optimizers[0], model, self.state)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        model: nn.Module = module.model  # type: ignore[assignment]
        self.state = by_name(trainer.optimizers[0], model)
