"""Detection by the backbone and heads of torchvision's one-stage detectors.

Anchors, matching, loss and boxes are torchvision's own. None of them is part of the network.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from lightning_modules.errors import ConfigError
from lightning_modules.models.one_stage import one_stage
from lightning_modules.tasks.detection import (
    MOST_BOXES,
    BoxMetrics,
    Objects,
    check_objects,
    images_of,
)

RAW_MAPS = ("cls_logits", "bbox_regression")
"""Outputs that every head gives."""


class TorchvisionDetection(BoxMetrics):
    """The loss and the boxes of torchvision's `detector`, from the raw outputs of its network.

    Images are taken as the data gives them: they are neither resized nor normalised again.
    """

    def __init__(self, model: nn.Module, num_classes: int, detector: str | None) -> None:
        super().__init__(model, num_classes)
        if detector is None:
            raise ConfigError(
                "task.detector must be the name of a detector of torchvision, as model.name says "
                "it; the model has none: take model=torchvision model.name=..., or task=detection"
            )
        self.surroundings = surroundings_of(detector, num_classes)

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for other outputs, or targets of another form."""
        if not isinstance(outputs, Mapping) or not set(RAW_MAPS) <= set(outputs):
            raise ConfigError(
                f"the model's outputs must be a dict with {' and '.join(RAW_MAPS)}; take "
                "model=torchvision with the name of a detector, or task=detection"
            )
        check_objects(batch, self.num_classes)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        images = images_of(batch)
        losses = self.surroundings.losses(self.model(images), images, list(batch[1]))
        return torch.stack(list(losses.values())).sum()

    def boxes_in(self, outputs: Any, images: Tensor) -> list[Objects]:
        detections = self.surroundings.detections(outputs, images)
        return [{key: value[:MOST_BOXES] for key, value in one.items()} for one in detections]


class Surroundings:
    """A detector of torchvision whose network is not run: its raw outputs are given.

    The detector's own forward is taken, so that nothing of it is written here again.
    """

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.detector.transform = _Unchanged()
        self.shapes = functools.cache(_map_shapes(detector.backbone.to("meta").eval()))

    def losses(self, outputs: Any, images: Tensor, targets: list[Objects]) -> Mapping[str, Tensor]:
        """Each loss by its name."""
        return self._forward(True, outputs, images, targets)

    def detections(self, outputs: Any, images: Tensor) -> list[Objects]:
        """What was found in each image, best first."""
        return self._forward(False, outputs, images, None)

    def _forward(self, training: bool, outputs: Any, images: Tensor, targets: Any) -> Any:
        empty = images.new_zeros(())
        maps = {
            str(level): empty.expand(1, *shape)
            for level, shape in enumerate(self.shapes(tuple(images.shape[1:])))
        }
        self.detector.training = training
        self.detector.backbone.forward = lambda _: maps
        self.detector.head.forward = lambda _: outputs
        return self.detector(images, targets)


def _map_shapes(backbone: nn.Module) -> Any:
    """A function from the shape (C, H, W) of an image to those of the maps that the heads see.

    Nothing is computed: the backbone has shapes alone.
    """
    forward = backbone.forward

    def shapes(image: tuple[int, ...]) -> list[tuple[int, ...]]:
        with torch.no_grad():
            maps = forward(torch.empty(1, *image, device="meta"))
        return [tuple(level.shape[1:]) for level in maps.values()]

    return shapes


class _Unchanged(nn.Module):
    """Stands in the place of the detector's resizing and normalising."""

    def forward(self, images: Tensor, targets: Any) -> tuple[ImageList, Any]:
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        return ImageList(images, sizes), targets

    def postprocess(self, found: Any, sizes: Any, original_sizes: Any) -> Any:
        return found


@functools.cache
def surroundings_of(name: str, num_classes: int) -> Surroundings:
    """Those of a detector by its name. Errors: ConfigError for one of two stages."""
    return Surroundings(one_stage(name, num_classes))
