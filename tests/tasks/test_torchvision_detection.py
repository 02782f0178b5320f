"""torchvision's detectors: the raw outputs of the network, with everything else around them."""

from __future__ import annotations

import pytest
import torch

from lightning_modules.errors import ConfigError
from lightning_modules.models import torchvision
from lightning_modules.models.one_stage import RawMaps, one_stage
from lightning_modules.tasks import TorchvisionDetection
from lightning_modules.tasks.contract import check_outputs, step_loss

SSD = "ssdlite320_mobilenet_v3_large"
OBJECTS = {
    "boxes": torch.tensor([[20.0, 30.0, 90.0, 80.0], [100.0, 150.0, 260.0, 300.0]]),
    "labels": torch.tensor([3, 1]),
}


def test_losses_and_boxes_are_those_of_the_whole_detector() -> None:
    """The detector is given pixels, which it normalises; its network, normalised ones."""
    torch.manual_seed(0)
    detector = one_stage(SSD, 4)
    pixels = torch.rand(2, 3, 320, 320)
    images = (pixels - 0.5) / 0.5
    task = TorchvisionDetection(RawMaps(detector), 4, SSD)
    detector.eval()
    with torch.no_grad():
        expected = detector(list(pixels))
        found = task.boxes_in(task.model(images), images)
        for one, other in zip(found, expected, strict=True):
            assert len(one["boxes"]) == 100
            for name, values in one.items():
                torch.testing.assert_close(values, other[name][:100], rtol=1e-3, atol=1e-3)
        for batch_norm in detector.modules():
            batch_norm.training = False
        detector.training = True
        losses = detector(list(pixels), [OBJECTS, OBJECTS])
        loss = step_loss(task.eval(), (images, [OBJECTS, OBJECTS]))
    torch.testing.assert_close(loss, losses["classification"] + losses["bbox_regression"])


def test_parts_of_the_network_have_the_names_that_they_have_in_the_detector() -> None:
    detector = one_stage(SSD, 4)
    assert set(torchvision(SSD, 4).state_dict()) == set(detector.state_dict())


def test_a_detector_that_has_no_such_outputs_is_told() -> None:
    task = TorchvisionDetection(torch.nn.Identity(), 4, SSD)
    with pytest.raises(ConfigError, match=r"a dict with cls_logits and bbox_regression"):
        check_outputs(task, (torch.zeros(1, 3, 64, 64), [OBJECTS]))
    with pytest.raises(ConfigError, match=r"must have one stage.*fasterrcnn_resnet50_fpn looks at"):
        torchvision("fasterrcnn_resnet50_fpn", 4)


def test_weights_of_other_classes_are_refused_before_a_download() -> None:
    with pytest.raises(ConfigError, match=r"COCO_V1 of ssd.* are for 91 classes; .* is 4"):
        torchvision(SSD, 4, "COCO_V1")


def test_a_model_without_a_name_says_no_detector() -> None:
    with pytest.raises(ConfigError, match=r"task\.detector must be the name .* model\.name="):
        TorchvisionDetection(torch.nn.Identity(), 4, None)
