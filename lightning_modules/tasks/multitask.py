"""Two tasks at once: which digit an image shows, and whether it is even."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.errors import ConfigError
from lightning_modules.tasks.divergence import softened_kl
from lightning_modules.tasks.metrics import Direction

HEAD_CLASSES = {"digit": 10, "parity": 2}
"""The outputs of the network, and their classes."""


def targets_of(batch: Any) -> dict[str, Tensor]:
    """The targets of each head, shape (N,), of a batch whose second entry is the digits."""
    return {"digit": batch[1], "parity": batch[1] % 2}


class DigitAndParity(LightningModule):
    """The sum of the two heads' cross-entropies, and the accuracy of each.

    Outputs are a dict: name of the head -> logits (N, classes). Accuracies are fractions in [0, 1].
    """

    directions: ClassVar[dict[str, Direction]] = {
        "digit_accuracy": "maximize",
        "parity_accuracy": "maximize",
    }
    scale: ClassVar[dict[str, float]] = {"digit_accuracy": 1.0, "parity_accuracy": 1.0}
    references: ClassVar[dict[str, float]] = {"digit_accuracy": 0.5, "parity_accuracy": 0.5}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.accuracies = nn.ModuleDict(
            {
                name: MulticlassAccuracy(classes, average="micro")
                for name, classes in HEAD_CLASSES.items()
            }
        )

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for outputs that are not the logits of each head."""
        shapes: Any = f"a {type(outputs).__name__}"
        if isinstance(outputs, Mapping):
            shapes = {name: tuple(logits.shape[1:]) for name, logits in outputs.items()}
        wanted = {name: (classes,) for name, classes in HEAD_CLASSES.items()}
        if shapes != wanted:
            raise ConfigError(
                f"the model's outputs must be a dict of these shapes, beside the batch: {wanted}; "
                f"they are {shapes}; see model.heads"
            )

    def divergence(self, outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
        """The sum over the heads."""
        apart = [softened_kl(outputs[name], dense[name], temperature) for name in HEAD_CLASSES]
        return torch.stack(apart).sum()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        outputs = self.model(batch[0])
        targets = targets_of(batch)
        losses = [F.cross_entropy(outputs[name], targets[name]) for name in HEAD_CLASSES]
        return torch.stack(losses).sum()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        outputs = self.model(batch[0])
        targets = targets_of(batch)
        for name, accuracy in self.accuracies.items():
            accuracy.update(outputs[name], targets[name])
            self.log(f"{name}_accuracy", accuracy, on_epoch=True)
