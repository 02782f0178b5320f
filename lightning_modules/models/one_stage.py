"""torchvision's one-stage detectors without what follows their heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_modules.errors import ConfigError

FAMILIES = ("fcos", "retinanet", "ssd")
"""What the names of detectors begin with whose heads see whole maps, not one proposal each."""


class RawMaps(nn.Module):
    """The backbone and the head of a detector; their parameters keep their names.

    Input (N, 3, H, W), output a dict: `cls_logits` (N, anchors, classes), `bbox_regression`
    (N, anchors, 4), and what else the head gives.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        return self.head(list(features.values()))


def one_stage(name: str, num_classes: int, weights: str | None = None, **options: Any) -> nn.Module:
    """torchvision's detector; without weights it has none in its backbone either.

    Errors: ConfigError for a detector of two stages, and for weights of another number of classes.
    """
    from torchvision import models

    if not name.startswith(FAMILIES):
        raise ConfigError(
            f"a detector that is pruned by name must have one stage ({', '.join(FAMILIES)}); {name}"
            " looks at each of its proposals again: bring its LightningModule (task=lightning)"
        )
    if weights is None:
        options.setdefault("weights_backbone", None)
    else:
        classes = len(models.get_model_weights(name)[weights].meta["categories"])
        if classes != num_classes:
            raise ConfigError(
                f"model.weights={weights} of {name} are for {classes} classes; model.num_classes "
                f"is {num_classes}: take as many, or +model.weights_backbone for the backbone alone"
            )
    return models.get_model(name, weights=weights, num_classes=num_classes, **options)
