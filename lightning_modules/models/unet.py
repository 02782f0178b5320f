"""A small U-Net: what the way down saw at each resolution is joined to the way up.

Source: Ronneberger et al. 2015, figure 1; with padding and batch norm.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """`depth` halvings of the resolution; each level has twice the channels of the one above it.

    Input (N, in_channels, H, W), output (N, num_classes, H, W).
    Errors: ValueError for H or W that is no multiple of 2^depth.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 1, width: int = 16, depth: int = 2
    ) -> None:
        super().__init__()
        self.multiple = 2**depth
        widths = [width * 2**level for level in range(depth + 1)]
        self.stem = _two_convolutions(in_channels, width)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList([_two_convolutions(above, below) for above, below in pairs])
        pairs.reverse()
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(below, above, 2, stride=2) for above, below in pairs]
        )
        self.joined = nn.ModuleList([_two_convolutions(2 * above, above) for above, _ in pairs])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(
                f"sides of images must be multiples of 2^depth = {self.multiple}; got "
                f"{x.shape[2]} x {x.shape[3]}"
            )
        x = self.stem(x)
        seen = [x]
        for level in self.down:
            x = level(F.max_pool2d(x, 2))
            seen.append(x)
        seen.pop()
        for up, level in zip(self.up, self.joined, strict=True):
            x = level(torch.cat([seen.pop(), up(x)], 1))
        return self.head(x)


def _two_convolutions(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
