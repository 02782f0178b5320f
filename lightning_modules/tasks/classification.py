"""Classification: one label per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_modules.errors import ConfigError
from lightning_modules.tasks.divergence import softened_kl
from lightning_modules.tasks.metrics import Direction

BY_CLASS = "by_class"
"""Name of the metric per class among the others; it is not logged."""


def logits_of(outputs: Any) -> Any:
    """The logits among a network's outputs; some networks add auxiliary ones in training."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    if isinstance(outputs, tuple | list) and outputs:
        return outputs[0]
    return outputs


class Classification(LightningModule):
    """Cross-entropy on logits (N, num_classes) and targets (N,).

    Of several outputs those called `logits`, or else the first ones, are the logits.

    Accuracy and F1 are fractions in [0, 1]; the loss is in nats. `by_class` has the share of each
    class that is recognised (recall).
    """

    directions: ClassVar[dict[str, Direction]] = {
        "accuracy": "maximize",
        "f1": "maximize",
        "loss": "minimize",
    }
    scale: ClassVar[dict[str, float]] = {"accuracy": 1.0, "f1": 1.0, "loss": 1.0}
    references: ClassVar[dict[str, float]] = {"accuracy": 0.5, "f1": 0.5}
    classifies = True

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.class_names = class_names or [str(number) for number in range(num_classes)]
        self.by_class: dict[str, float] = {}
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes, average="macro"),
                BY_CLASS: MulticlassAccuracy(num_classes, average="none"),
            }
        )
        self.mean_loss = MeanMetric()

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for outputs that are not one logit per class."""
        shape = f"a {type(outputs).__name__} without `logits`"
        logits = logits_of(outputs)
        if isinstance(logits, Tensor):
            if logits.dim() == 2 and logits.shape[1] == self.num_classes:
                return
            sizes = ", ".join(map(str, logits.shape[1:]))
            shape = f"(batch, {sizes})"
        raise ConfigError(
            f"the model's output must be (batch, {self.num_classes}) for this data; it is {shape}; "
            "see the model's num_classes or outputs"
        )

    def divergence(self, outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
        return softened_kl(logits_of(outputs), logits_of(dense), temperature)

    def logits(self, batch: Any) -> Any:
        """Those of the network on the inputs of a batch, shape (N, num_classes)."""
        return logits_of(self.model(batch[0]))

    def targets(self, batch: Any) -> Tensor:
        """Shape (N,)."""
        return batch[1]

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        logits = self.logits(batch)
        return F.cross_entropy(logits, self.targets(batch), label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        logits = self.logits(batch)
        targets = self.targets(batch)
        self.mean_loss.update(F.cross_entropy(logits, targets), len(targets))
        self.metrics.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        computed = self.metrics.compute()
        self.by_class = dict(zip(self.class_names, computed.pop(BY_CLASS).tolist(), strict=True))
        self.log_dict({**computed, "loss": self.mean_loss.compute()})
        self.metrics.reset()
        self.mean_loss.reset()
