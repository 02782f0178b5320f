"""A small one-stage detector without anchors; what it gives are maps, not boxes.

Source: Tian et al. 2019 (FCOS), sections 3.1 and 3.2, with one level of a feature pyramid.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

PRIOR = 0.01
"""Probability of every class at every place before training (Lin et al. 2017, section 4.1)."""


class Detector(nn.Module):
    """At each place of a map, a quarter as wide and high as the image, what is there and how large.

    Input (N, in_channels, H, W); H and W are multiples of 8. Output a dict: `classes`
    (N, num_classes - 1, H/4, W/4) are logits of the classes without the background, `boxes`
    (N, 4, H/4, W/4) logarithms of the distances to the left, upper, right and lower side, in steps
    of the map.
    Errors: ValueError for other sides of an image.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 24) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, width, 2)
        self.quarter = nn.Sequential(
            _convolution(width, 2 * width, 2), _convolution(2 * width, 2 * width)
        )
        self.eighth = nn.Sequential(
            _convolution(2 * width, 4 * width, 2), _convolution(4 * width, 4 * width)
        )
        self.side = nn.Conv2d(2 * width, 2 * width, 1)
        self.below = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.neck = _convolution(2 * width, 2 * width)
        self.tower = _convolution(2 * width, 2 * width)
        self.classes = nn.Conv2d(2 * width, num_classes - 1, 3, 1, 1)
        self.boxes = nn.Conv2d(2 * width, 4, 3, 1, 1)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -math.log((1.0 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(
                f"sides of images must be multiples of 8; got {x.shape[2]} x {x.shape[3]}"
            )
        quarter = self.quarter(self.stem(x))
        joined = self.side(quarter) + self.below(self.eighth(quarter))
        features = self.tower(self.neck(joined))
        return {"classes": self.classes(features), "boxes": self.boxes(features)}


def _convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
