"""Carries an optimizer's momenta and moments from one phase of training to the next."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_modules.pruning.optimizer import by_name, load_by_name
from lightning_modules.tasks.whole import trained_of


class Carried(Callback):
    """Loads `state` into the optimizer when training starts, and holds its state when training
    ends.

    The state is kept by parameter name, see optimizer.py. None starts with an empty optimizer.
    """

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.state:
            load_by_name(trainer.optimizers[0], trained_of(module), self.state)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.state = by_name(trainer.optimizers[0], trained_of(module))
