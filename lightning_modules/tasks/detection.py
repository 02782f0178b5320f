"""Detection: which objects an image shows, and the box of each.

The network gives maps. The loss, and the boxes that maps stand for, are outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from lightning_modules.errors import ConfigError
from lightning_modules.tasks.metrics import Direction

MAPS = ("classes", "boxes")
"""The network's outputs."""
NEAR = 1.5
"""An object is to be found at places this near to its centre, in steps of the map."""
LEAST_SCORE = 0.05
"""Smallest probability of a box that counts."""
MOST_BOXES = 100
"""Most boxes of an image, as the metric takes them."""
LARGEST_OVERLAP = 0.5
"""Of boxes of a class that overlap more than this (intersection over union) one stays."""
LARGEST_DISTANCE = 6.0
"""Largest logarithm of a distance, in steps of the map."""

Objects = dict[str, Tensor]
"""`boxes` (n, 4) as x1, y1, x2, y2 in pixels, `labels` (n,) from 1 on; if found, `scores` (n,)."""


class BoxMetrics(LightningModule):
    """What every task of detection has: batches, and the mean average precision.

    Batches begin with images (N, C, H, W) and a list of `Objects`. `map` is the mean over overlaps
    of .5 to .95, `map_50` that at .5; both are fractions in [0, 1].
    Errors: ConfigError if the metric's package is missing.
    """

    directions: ClassVar[dict[str, Direction]] = {"map": "maximize", "map_50": "maximize"}
    scale: ClassVar[dict[str, float]] = {"map": 1.0, "map_50": 1.0}
    references: ClassVar[dict[str, float]] = {"map": 0.2, "map_50": 0.4}

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.precision = mean_average_precision()

    def boxes_in(self, outputs: Any, images: Tensor) -> list[Objects]:
        raise NotImplementedError  # each task has its own outputs

    def validation_step(self, batch: Any, batch_index: int) -> None:
        images = images_of(batch)
        self.precision.update(self.boxes_in(self.model(images), images), list(batch[1]))

    def on_validation_epoch_end(self) -> None:
        precisions = self.precision.compute()
        self.log_dict({name: precisions[name].clamp_min(0.0) for name in self.directions})
        self.precision.reset()


class Detection(BoxMetrics):
    """Detection by a network without anchors, such as `Detector`.

    Its outputs are a dict: `classes` (N, num_classes - 1, h, w) and `boxes` (N, 4, h, w). The loss
    is the focal loss of the classes plus the generalised intersection over union of the boxes.
    Source: Tian et al. 2019 (FCOS), section 3, with the later sampling of centres.
    """

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for outputs that are not the two maps, or targets of another form."""
        shapes: Any = f"a {type(outputs).__name__}"
        if isinstance(outputs, Mapping):
            shapes = {name: tuple(maps.shape[1:]) for name, maps in outputs.items()}
        channels = {"classes": self.num_classes - 1, "boxes": 4}
        fits = isinstance(shapes, dict) and set(shapes) == set(MAPS)
        if not fits or any(shapes[name][:1] != (channels[name],) for name in MAPS):
            raise ConfigError(
                f"the model's outputs must be a dict of maps with these channels: {channels}; they "
                f"are {shapes}; see the model's num_classes"
            )
        check_objects(batch, self.num_classes)

    def divergence(self, outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
        """T^2 x KL of each class's probability, and the distance of the boxes, where the dense
        model sees an object.

        Places count by the dense model's largest probability there; the sum of these divides both.
        """
        weight = dense["classes"].sigmoid().amax(1)
        apart = _binary_kl(outputs["classes"], dense["classes"], temperature).sum(1)
        boxes = (outputs["boxes"] - dense["boxes"]).abs().sum(1)
        return (apart.sum() + (weight * boxes).sum()) / weight.sum().clamp_min(1.0)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        images = images_of(batch)
        outputs = self.model(images)
        wanted = [assigned(objects, outputs["classes"], images) for objects in batch[1]]
        labels = torch.stack([label for label, _ in wanted])
        boxes = torch.stack([box for _, box in wanted])
        seen = labels > 0
        count = seen.sum().clamp_min(1)
        classes = F.one_hot(labels, self.num_classes)[..., 1:]
        logits = outputs["classes"].flatten(2).mT
        focal = sigmoid_focal_loss(logits, classes.to(logits.dtype), reduction="sum") / count
        decoded = boxes_of(outputs["boxes"], images)
        overlap = generalized_box_iou_loss(decoded[seen], boxes[seen], reduction="sum") / count
        return focal + overlap

    def boxes_in(self, outputs: Any, images: Tensor) -> list[Objects]:
        scores = outputs["classes"].flatten(2).mT.sigmoid()
        boxes = boxes_of(outputs["boxes"], images)
        return [best(score, box) for score, box in zip(scores, boxes, strict=True)]


def mean_average_precision() -> Any:
    """torchmetrics' metric. Errors: ConfigError if what it needs is missing."""
    from torchmetrics.detection import MeanAveragePrecision

    try:
        return MeanAveragePrecision()
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the mean average precision needs pycocotools; install it with pip install "
            "'pruning-orchestrator[detection]'"
        ) from error


def images_of(batch: Any) -> Tensor:
    """Images (N, C, H, W) of a batch; a list of images is stacked.

    Errors: ConfigError for images of different sizes.
    """
    images = batch[0]
    if isinstance(images, Tensor):
        return images
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ConfigError(
            f"the images of a batch must have one size; they have {sorted(shapes)}: resize or pad "
            "them, and their boxes, in the dataset"
        )
    return torch.stack(list(images))


def check_objects(batch: Any, num_classes: int) -> None:
    """Errors: ConfigError for targets that are not boxes and labels of each image."""
    rule = (
        "a detection's targets must be a list with a dict for each image: boxes (n, 4) as "
        f"x1, y1, x2, y2 in pixels, and labels (n,) from 1 to {num_classes - 1}"
    )
    for objects in batch[1]:
        if not isinstance(objects, Mapping) or not {"boxes", "labels"} <= set(objects):
            raise ConfigError(f"{rule}; one is a {type(objects).__name__}")
        labels, boxes = objects["labels"], objects["boxes"]
        if boxes.shape != (len(labels), 4):
            raise ConfigError(f"{rule}; boxes are {tuple(boxes.shape)}, labels {len(labels)}")
        if ((labels < 1) | (labels >= num_classes)).any():
            raise ConfigError(f"{rule}; labels are {labels.tolist()}")
        if (boxes[:, 2:] <= boxes[:, :2]).any():
            raise ConfigError(f"{rule}; a box has no area: {boxes.tolist()}")


def places_of(maps: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (h w, 2) of a map's places as x, y in pixels, and its step (2,) in pixels."""
    height, width = maps.shape[2:]
    step = torch.tensor([images.shape[3] / width, images.shape[2] / height], device=maps.device)
    rows = torch.arange(height, device=maps.device)
    columns = torch.arange(width, device=maps.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack([x, y], -1).flatten(0, 1) + 0.5) * step, step


def boxes_of(maps: Tensor, images: Tensor) -> Tensor:
    """Boxes (N, h w, 4) in pixels from logarithms of distances (N, 4, h, w)."""
    centres, step = places_of(maps, images)
    distances = maps.flatten(2).mT.clamp(max=LARGEST_DISTANCE).exp() * step.repeat(2)
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


def assigned(objects: Objects, maps: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """What is to be found at each place: labels (h w,), 0 for nothing, and boxes (h w, 4).

    Where several objects are near, it is the smallest.
    """
    centres, step = places_of(maps, images)
    boxes, labels = objects["boxes"].to(centres), objects["labels"]
    if len(labels) == 0:
        return labels.new_zeros(len(centres)), centres.new_zeros(len(centres), 4)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = ((centres[:, None] - middle) / step).abs().amax(-1)
    inside = (centres[:, None] > boxes[:, :2]) & (centres[:, None] < boxes[:, 2:])
    near = (away <= NEAR) & inside.all(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).expand_as(near)
    least, which = area.masked_fill(~near, torch.inf).min(1)
    return labels[which].where(least.isfinite(), 0), boxes[which]


def best(scores: Tensor, boxes: Tensor) -> Objects:
    """The objects found among boxes (places, 4), with scores (places, classes).

    A box and class is left out if its score is small, or a better one of its class overlaps it.
    """
    place, label = (scores > LEAST_SCORE).nonzero(as_tuple=True)
    scores, boxes = scores[place, label], boxes[place]
    kept = batched_nms(boxes, scores, label, LARGEST_OVERLAP)[:MOST_BOXES]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": label[kept] + 1}


def _binary_kl(logits: Tensor, dense: Tensor, temperature: float) -> Tensor:
    """T^2 x KL(dense || logits) of each logit as a probability, softened by the temperature T."""
    student, teacher = logits / temperature, dense / temperature
    of_yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    of_no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature * temperature * (of_yes + of_no)
