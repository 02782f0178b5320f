"""Image classification."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_modules.phases.distillation import Distillation


class Classification(LightningModule):
    """Cross-entropy on logits of shape (N, num_classes), targets (N,); metrics are fractions in [0, 1], loss in nats.

    With `distillation` set, training minimises its mixture of the loss and the divergence from the dense outputs.
    """

    directions: ClassVar[dict[str, Literal["maximize", "minimize"]]] = {
        "accuracy": "maximize",
        "f1": "maximize",
        "loss": "minimize",
    }

    def __init__(self, model: nn.Module, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.distillation: Distillation | None = None
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes, average="macro"),
            }
        )
        self.mean_loss = MeanMetric()

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross-entropy of `model` on a batch, without smoothing or distillation: what criteria differentiate."""
        return F.cross_entropy(model(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        logits = self.model(batch[0])
        loss = F.cross_entropy(logits, batch[1], label_smoothing=self.label_smoothing)
        return loss if self.distillation is None else self.distillation(loss, logits, batch)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        logits = self.model(batch[0])
        self.mean_loss.update(F.cross_entropy(logits, batch[1]), len(batch[1]))
        self.metrics.update(logits, batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log_dict({**self.metrics.compute(), "loss": self.mean_loss.compute()})
        self.metrics.reset()
        self.mean_loss.reset()
