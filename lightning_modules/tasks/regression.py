"""Regression: one number per sample."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from lightning_modules.errors import ConfigError
from lightning_modules.tasks.metrics import Direction


class Regression(LightningModule):
    """Huber loss on outputs (N,) or (N, 1) and targets (N,).

    The mean absolute error `mae` and the root of the mean squared error `rmse` are in the target's
    own unit. `data.target_deviation` is that of the outputs in it; without this attribute they are
    the same.
    """

    directions: ClassVar[dict[str, Direction]] = {"mae": "minimize", "rmse": "minimize"}

    def __init__(self, model: nn.Module, data: Any = None) -> None:
        super().__init__()
        self.model = model
        self.unit = float(getattr(data, "target_deviation", 1.0))
        self.mae = MeanAbsoluteError()
        self.rmse = MeanSquaredError(squared=False)

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for outputs that are not one number per sample."""
        shape = f"a {type(outputs).__name__}"
        if isinstance(outputs, Tensor):
            if outputs.dim() == 1 or outputs.shape[1:] == (1,):
                return
            sizes = ", ".join(map(str, outputs.shape[1:]))
            shape = f"(batch, {sizes})"
        raise ConfigError(
            f"the model's output must be (batch,) or (batch, 1) for a regression; it is {shape}; "
            "see the model's outputs"
        )

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return F.huber_loss(self.model(batch[0]).flatten(), batch[1])

    def validation_step(self, batch: Any, batch_index: int) -> None:
        predictions = self.unit * self.model(batch[0]).flatten()
        targets = self.unit * batch[1]
        self.mae.update(predictions, targets)
        self.rmse.update(predictions, targets)
        self.log("mae", self.mae, on_epoch=True)
        self.log("rmse", self.rmse, on_epoch=True)
