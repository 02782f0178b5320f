"""Segmentation: the class of each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from lightning_modules.errors import ConfigError
from lightning_modules.tasks.classification import BY_CLASS
from lightning_modules.tasks.divergence import softened_kl
from lightning_modules.tasks.metrics import Direction

LOSSES = ("cross_entropy", "dice", "both")
UNLABELLED = 255
"""The class of pixels that nobody labelled, as in Pascal VOC: they count nowhere."""
AUXILIARY_WEIGHT = 0.5
"""Weight of the loss of an auxiliary head, as torchvision trains them."""


def maps_of(outputs: Any) -> Any:
    """The class maps among a network's outputs: `out` of torchvision's, `logits` of others."""
    if isinstance(outputs, Mapping):
        return outputs.get("out", outputs.get("logits"))
    if isinstance(outputs, tuple | list) and outputs:
        return outputs[0]
    return outputs


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - the mean over the classes of 2 |A B| / (|A| + |B|), softly, over the whole batch.

    A is what is predicted and B what is labelled; classes that the batch does not show are left
    out. Shapes (N, classes, H, W) and (N, H, W).
    Source: Milletari et al. 2016, section 3, with sums in the place of sums of squares.
    """
    known = targets != UNLABELLED
    labelled = F.one_hot(targets.where(known, 0), logits.shape[1]).movedim(-1, 1)
    labelled = labelled * known.unsqueeze(1)
    predicted = logits.softmax(1) * known.unsqueeze(1)
    over = (0, 2, 3)
    shared = (predicted * labelled).sum(over)
    area = labelled.sum(over)
    dice = 2.0 * shared / (predicted.sum(over) + area).clamp_min(1.0)
    shown = area > 0
    return 1.0 - dice[shown].mean() if bool(shown.any()) else 0.0 * logits.sum()


class Segmentation(LightningModule):
    """Logits (N, num_classes, H, W) and targets (N, H, W) of classes; 255 is no class.

    The maps are the network's output, or what is called `out` or `logits` in it, or the first one.
    Smaller maps are enlarged to the targets. An output called `aux` adds to the training loss.
    `loss` is cross_entropy, dice, or both, which is their sum. `mean_iou` and `dice` are means over
    the classes, of all pixels of the data together, and fractions in [0, 1]; `by_class` has the IoU
    of each.
    Errors: ConfigError for another loss.
    """

    directions: ClassVar[dict[str, Direction]] = {"mean_iou": "maximize", "dice": "maximize"}
    scale: ClassVar[dict[str, float]] = {"mean_iou": 1.0, "dice": 1.0}
    references: ClassVar[dict[str, float]] = {"mean_iou": 0.4, "dice": 0.5}

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        loss: str = "cross_entropy",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ConfigError(f"task.loss must be one of {', '.join(LOSSES)}; got '{loss}'")
        self.model = model
        self.num_classes = num_classes
        self.loss = loss
        self.class_names = class_names or [str(number) for number in range(num_classes)]
        self.by_class: dict[str, float] = {}
        counted: dict[str, Any] = {"average": "macro", "ignore_index": UNLABELLED}
        self.metrics = MetricCollection(
            {
                "mean_iou": MulticlassJaccardIndex(num_classes, **counted),
                BY_CLASS: MulticlassJaccardIndex(
                    num_classes, average="none", ignore_index=UNLABELLED
                ),
                "dice": MulticlassF1Score(num_classes, **counted),
            },
            compute_groups=[["mean_iou", BY_CLASS], ["dice"]],
        )

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for outputs that are no map per class, or targets of no such form."""
        maps = maps_of(outputs)
        shape = f"a {type(outputs).__name__} without `out` or `logits`"
        if isinstance(maps, Tensor):
            shape = str(tuple(maps.shape))
        if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[1] != self.num_classes:
            raise ConfigError(
                f"the model's output must be (batch, {self.num_classes}, height, width) for this "
                f"data; it is {shape}; see the model's num_classes"
            )
        targets = batch[1]
        if not isinstance(targets, Tensor) or targets.dim() != 3 or targets.is_floating_point():
            raise ConfigError(
                "a segmentation's targets must be whole numbers (batch, height, width), the class "
                f"of each pixel; they are {_described(targets)}"
            )

    def divergence(self, outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
        """That of the classes of a pixel, averaged over all pixels."""
        return softened_kl(maps_of(outputs), maps_of(dense), temperature)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        outputs = self.model(batch[0])
        loss = self._loss(maps_of(outputs), batch[1])
        if isinstance(outputs, Mapping) and "aux" in outputs:
            loss = loss + AUXILIARY_WEIGHT * self._loss(outputs["aux"], batch[1])
        return loss

    def _loss(self, maps: Tensor, targets: Tensor) -> Tensor:
        logits = _enlarged(maps, targets)
        terms = []
        if self.loss in ("cross_entropy", "both"):
            terms.append(F.cross_entropy(logits, targets, ignore_index=UNLABELLED))
        if self.loss in ("dice", "both"):
            terms.append(dice_loss(logits, targets))
        return torch.stack(terms).sum()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        logits = _enlarged(maps_of(self.model(batch[0])), batch[1])
        self.metrics.update(logits, batch[1])

    def on_validation_epoch_end(self) -> None:
        computed = self.metrics.compute()
        self.by_class = dict(zip(self.class_names, computed.pop(BY_CLASS).tolist(), strict=True))
        self.log_dict(computed)
        self.metrics.reset()


def _enlarged(maps: Tensor, targets: Tensor) -> Tensor:
    """Maps of the targets' height and width."""
    if maps.shape[2:] == targets.shape[1:]:
        return maps
    return F.interpolate(maps, targets.shape[1:], mode="bilinear", align_corners=False)


def _described(targets: Any) -> str:
    if not isinstance(targets, Tensor):
        return f"a {type(targets).__name__}"
    return f"{str(targets.dtype).removeprefix('torch.')}{list(targets.shape)}"
