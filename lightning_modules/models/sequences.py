"""Small networks without convolutions in depth: a vision transformer, and an LSTM that reads an image by rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Layer(nn.Module):
    """Pre-norm attention and MLP, both with a shortcut (Dosovitskiy et al. 2021, eq. 2 and 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SmallViT(nn.Module):
    """`layers` transformer layers over patches of `patch` x `patch` pixels; input (N, in_channels, size, size)."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        size: int = 8,
        patch: int = 2,
        width: int = 32,
        heads: int = 4,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.fc(self.norm(self.layers(tokens)).mean(1))


class RowLSTM(nn.Module):
    """An LSTM that reads an image row by row; input (N, in_channels, H, W), steps H, features in_channels x W."""

    def __init__(
        self,
        num_classes: int,
        features: int = 8,
        width: int = 48,
        layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, layers, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(width * (2 if bidirectional else 1), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x.transpose(1, 2).flatten(2))[0].mean(1))
