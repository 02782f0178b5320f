"""Classification of tables, whose classes are often of very different sizes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAUROC

from lightning_modules.tasks.classification import Classification
from lightning_modules.tasks.metrics import Direction


class _RocAuc(MulticlassAUROC):
    """That of logits (N, classes); the metric itself takes those between 0 and 1 for probabilities.

    In double precision confident samples are no ties.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.double().softmax(1), target)


class Tabular(Classification):
    """Classification with the area under the ROC curve as `roc_auc`, a fraction in [0, 1].

    It is the mean of each class against all others, which for two classes is that of either.
    """

    directions: ClassVar[dict[str, Direction]] = {
        **Classification.directions,
        "roc_auc": "maximize",
    }
    scale: ClassVar[dict[str, float]] = {**Classification.scale, "roc_auc": 1.0}
    references: ClassVar[dict[str, float]] = {**Classification.references, "roc_auc": 0.5}

    def __init__(self, model: nn.Module, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(model, num_classes, label_smoothing)
        self.metrics.add_metrics({"roc_auc": _RocAuc(num_classes, average="macro")})
