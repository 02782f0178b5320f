"""Detection: from objects to maps and back, losses and metrics in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.models import Detector
from lightning_modules.tasks import Detection
from lightning_modules.tasks.contract import check_outputs, inputs_of, step_loss
from lightning_modules.tasks.detection import assigned, best, boxes_of, images_of

CLASSES = 4
IMAGES = torch.zeros(1, 1, 32, 32)
OBJECTS = {
    "boxes": torch.tensor([[2.0, 2.0, 14.0, 14.0], [16.0, 18.0, 30.0, 28.0]]),
    "labels": torch.tensor([3, 1]),
}
BATCH = (IMAGES, [OBJECTS])


class Says(nn.Module):
    """A network that says the same of every image."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.classes = nn.Parameter(outputs["classes"])
        self.boxes = nn.Parameter(outputs["boxes"])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"classes": self.classes, "boxes": self.boxes}


def right(sure: float = 9.0) -> dict[str, Tensor]:
    """The maps of a network that finds the objects exactly."""
    classes = torch.full((1, CLASSES - 1, 8, 8), -sure)
    labels, boxes = assigned(OBJECTS, classes, IMAGES)
    for place, label in enumerate(labels.tolist()):
        if label:
            classes[0, label - 1, place // 8, place % 8] = sure
    step = 4.0
    centres = boxes_of(torch.full((1, 4, 8, 8), -math.inf), IMAGES)[0]
    distances = torch.cat([centres[:, :2] - boxes[:, :2], boxes[:, 2:] - centres[:, 2:]], 1)
    logarithms = (distances / step).clamp_min(1e-6).log()
    return {"classes": classes, "boxes": logarithms.T.reshape(1, 4, 8, 8)}


def test_objects_that_are_assigned_are_found_again() -> None:
    (found,) = Detection(Says(right()), CLASSES).boxes_in(right(), IMAGES)
    order = found["labels"].argsort(descending=True)
    assert found["labels"][order].tolist() == [3, 1]
    torch.testing.assert_close(found["boxes"][order], OBJECTS["boxes"])


def test_the_loss_of_maps_that_are_right_is_nearly_nothing() -> None:
    maps = right()
    exact = step_loss(Detection(Says(maps), CLASSES), BATCH).item()
    assert exact == pytest.approx(0.0, abs=1e-4)
    moved = {**maps, "boxes": maps["boxes"] + 0.3}
    assert step_loss(Detection(Says(moved), CLASSES), BATCH).item() > exact + 0.1
    unsure = {**maps, "classes": torch.zeros_like(maps["classes"])}
    assert step_loss(Detection(Says(unsure), CLASSES), BATCH).item() > exact + 0.1


def test_places_near_a_centre_belong_to_the_smallest_object_there() -> None:
    nested = {
        "boxes": torch.tensor([[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 24.0, 24.0]]),
        "labels": torch.tensor([1, 2]),
    }
    labels, boxes = assigned(nested, torch.zeros(1, 3, 8, 8), IMAGES)
    assert labels.unique().tolist() == [0, 2]
    assert (labels > 0).sum() == 16  # half a step and one and a half from the centre
    assert (boxes[labels > 0] == nested["boxes"][1]).all()


def test_an_image_without_objects_is_background() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    task = Detection(Detector(CLASSES, width=2), CLASSES)
    loss = step_loss(task, (IMAGES, [empty]))
    loss.backward()
    assert loss.isfinite()
    task.check(task.model(IMAGES), (IMAGES, [empty]))


def test_of_boxes_that_overlap_the_best_of_each_class_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([[0.8, 0.0], [0.9, 0.6], [0.01, 0.2]])
    found = best(scores, boxes)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.6, 0.2])
    assert found["labels"].tolist() == [1, 2, 2]
    assert found["boxes"].tolist() == boxes[[1, 1, 2]].tolist()


def test_the_metric_is_one_for_what_is_right_and_zero_for_nothing() -> None:
    for maps, expected in ((right(), 1.0), ({**right(), "classes": -right()["classes"].abs()}, 0)):
        task = Detection(Says(maps), CLASSES)
        task.validation_step(BATCH, 0)
        precisions = task.precision.compute()
        assert max(0.0, precisions["map"].item()) == pytest.approx(expected)


def test_a_divergence_counts_where_the_dense_model_sees_an_object() -> None:
    task, dense = Detection(nn.Identity(), CLASSES), right()
    nothing = dense["classes"][0].amax(0) < 0
    there, elsewhere = torch.where(nothing, 0.0, 0.5), torch.where(nothing, 0.5, 0.0)

    def apart(by: Tensor) -> float:
        return float(task.divergence({**dense, "boxes": dense["boxes"] + by}, dense))

    assert apart(there) == pytest.approx(4 * 0.5, rel=0.01)
    assert apart(elsewhere) < 0.05
    assert float(task.divergence(dense, dense, 3.0)) == 0.0
    other = {**dense, "classes": dense["classes"].roll(1, 1)}
    assert float(task.divergence(other, dense, 3.0)) > 1.0


def test_a_list_of_images_is_stacked() -> None:
    images = [torch.zeros(1, 32, 32), torch.ones(1, 32, 32)]
    task = Detection(Detector(CLASSES, width=2), CLASSES)
    assert inputs_of(task, (images, [OBJECTS, OBJECTS])).batch == 2
    with pytest.raises(ConfigError, match=r"must have one size.*\(1, 8, 32\).*resize or pad"):
        images_of(([torch.zeros(1, 8, 32), images[0]], []))


@pytest.mark.parametrize(
    ("outputs", "objects", "message"),
    [
        (torch.zeros(1, 3), [], r"dict of maps.*\{'classes': 3, 'boxes': 4\}; they are a Tensor"),
        ({"classes": torch.zeros(1, 9, 8, 8)}, [], r"they are \{'classes': \(9, 8, 8\)\}"),
        (right(), [[1.0]], r"a dict for each image.*one is a list"),
        (right(), [{**OBJECTS, "labels": torch.tensor([0, 4])}], r"1 to 3; labels are \[0, 4\]"),
        (right(), [{**OBJECTS, "labels": torch.tensor([1])}], r"boxes are \(2, 4\), labels 1"),
        (right(), [{**OBJECTS, "boxes": OBJECTS["boxes"].flip(1)}], r"a box has no area"),
    ],
)
def test_what_does_not_fit_is_told(outputs: Any, objects: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Detection(nn.Identity(), CLASSES).check(outputs, (IMAGES, objects))


def test_a_missing_package_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def __init__(self) -> None:
            raise ModuleNotFoundError("pycocotools")

    monkeypatch.setattr("torchmetrics.detection.MeanAveragePrecision", Missing)
    with pytest.raises(ConfigError, match=r"pip install 'pruning-orchestrator\[detection\]'"):
        Detection(nn.Identity(), CLASSES)


def test_images_of_other_sides_are_told_what_the_detector_takes() -> None:
    task = Detection(Detector(CLASSES, width=2), CLASSES)
    with pytest.raises(ConfigError, match=r"multiples of 8; got 20 x 32"):
        check_outputs(task, (torch.zeros(1, 1, 20, 32), [OBJECTS]))
