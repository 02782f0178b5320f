"""Segmentation: its losses and metrics in closed form, and outputs of every shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.models import UNet, torchvision
from lightning_modules.models.by_name import with_maps
from lightning_modules.tasks import Segmentation
from lightning_modules.tasks.contract import check_outputs, step_loss
from lightning_modules.tasks.segmentation import AUXILIARY_WEIGHT, UNLABELLED, dice_loss

MASK = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]])
SURE = 50.0


def sure(mask: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return SURE * nn.functional.one_hot(mask, classes).movedim(-1, 1).float()


class Says(nn.Module):
    """A network that says the same of every image."""

    def __init__(self, outputs: object) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> object:
        return self.outputs


def test_the_dice_loss_is_that_of_the_classes_that_are_shown() -> None:
    assert dice_loss(sure(MASK), MASK).item() == pytest.approx(0.0, abs=1e-6)
    wider = MASK.clone()
    wider[0, 2, 2:] = 1  # 6 pixels are predicted as class 1, 4 of which are
    expected = 1.0 - 0.5 * (2 * 4 / (6 + 4) + 2 * 10 / (10 + 12))
    assert dice_loss(sure(wider), MASK).item() == pytest.approx(expected, abs=1e-6)


def test_pixels_that_nobody_labelled_count_nowhere() -> None:
    partly = MASK.clone()
    partly[0, 0] = UNLABELLED
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    task = Segmentation(Says(logits), 3, "both")
    step_loss(task, (logits, partly)).backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, 0].any()
    assert logits.grad[0, :, 1].any()
    task.metrics.update(sure(MASK), partly)
    assert task.metrics.compute()["mean_iou"].item() == pytest.approx(1.0)


def test_nothing_labelled_is_no_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = dice_loss(logits, torch.full_like(MASK, UNLABELLED))
    loss.backward()
    assert loss.item() == 0.0


def test_metrics_are_of_all_pixels_of_the_data_together() -> None:
    task = Segmentation(nn.Identity(), 2)
    wrong = MASK.clone()
    wrong[0, 0, 2:] = 0
    for predicted in (MASK, wrong):
        task.validation_step((sure(predicted, 2), MASK), 0)
    metrics = task.metrics.compute()
    assert metrics["mean_iou"].item() == pytest.approx((6 / 8 + 24 / 26) / 2)
    assert metrics["dice"].item() == pytest.approx((12 / 14 + 48 / 50) / 2)


@pytest.mark.parametrize("name", ["out", "logits"])
def test_maps_are_found_by_name_and_enlarged(name: str) -> None:
    small = torch.randn(1, 3, 2, 2)
    task = Segmentation(Says({name: small}), 3)
    check_outputs(task, (torch.zeros(1, 1, 4, 4), MASK))
    large = nn.functional.interpolate(small, (4, 4), mode="bilinear")
    expected = nn.functional.cross_entropy(large, MASK)
    with torch.no_grad():
        assert step_loss(task, (torch.zeros(1), MASK)).item() == pytest.approx(expected.item())


def test_an_auxiliary_head_adds_to_the_loss() -> None:
    maps = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        alone = step_loss(Segmentation(Says({"out": maps}), 3), (MASK, MASK))
        both = step_loss(Segmentation(Says({"out": maps, "aux": maps}), 3), (MASK, MASK))
    assert both.item() == pytest.approx((1.0 + AUXILIARY_WEIGHT) * alone.item())


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.zeros(1, 3), MASK, r"must be \(batch, 3, height, width\).*it is \(1, 3\)"),
        ({"masks": 0}, MASK, r"it is a dict without `out` or `logits`"),
        (torch.zeros(1, 3, 4, 4), MASK.float(), r"whole numbers.*they are float32\[1, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4), [], r"they are a list"),
    ],
)
def test_what_does_not_fit_is_told(outputs: object, targets: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Segmentation(nn.Identity(), 3).check(outputs, (None, targets))


def test_a_loss_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match=r"task.loss must be one of cross_entropy, dice, both"):
        Segmentation(nn.Identity(), 3, "focal")


def test_images_of_other_sides_are_told_what_a_u_net_takes() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 2\^depth = 8; got 12 x 16"):
        check_outputs(Segmentation(UNet(3, width=2, depth=3), 3), (torch.zeros(1, 1, 12, 16), MASK))


def test_a_network_of_torchvision_by_name_has_the_asked_classes_and_no_download() -> None:
    network = torchvision("lraspp_mobilenet_v3_large", 4).eval()
    shape = (1, 3, 32, 32)
    with torch.no_grad():
        assert network(torch.zeros(shape))["out"].shape == (1, 4, 32, 32)
        # as if its weights were for 4 classes, and 5 are asked for
        assert with_maps(network, 4, 5)(torch.zeros(shape))["out"].shape == (1, 5, 32, 32)
    with pytest.raises(ConfigError, match=r"did you mean 'deeplabv3_resnet50'|deeplabv3_resnet50"):
        torchvision("deeplab_resnet50", 4)
