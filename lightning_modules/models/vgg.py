"""VGG for small images, with batch norm and a single linear layer.

Source: Simonyan & Zisserman 2015, table 1, D.
"""

from __future__ import annotations

from torch import Tensor, nn

STAGES = (2, 2, 3, 3, 3)
"""Convolutions before each pooling, as in VGG-16."""


class SmallVGG(nn.Module):
    """VGG-16-BN whose stages have `width`, 2, 4, 8 and 8 x `width` channels; the paper's width is
    64.

    Input (N, in_channels, H, W), output (N, num_classes). Five poolings halve the sides, so H and W
    must be multiples of 32.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, depth in enumerate(STAGES):
            wide = width * min(8, 2**stage)
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, wide, 3, padding=1, bias=False))
                layers.append(nn.BatchNorm2d(wide))
                layers.append(nn.ReLU())
                channels = wide
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return self.fc(features.mean((2, 3)))
