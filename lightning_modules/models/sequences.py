"""Small networks of other kinds: a vision transformer, and an LSTM that reads an image by rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Layer(nn.Module):
    """Pre-norm attention and MLP, both with a shortcut (Dosovitskiy et al. 2021, eq. 2 and 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        x = x + attended
        hidden = F.gelu(self.up(self.norm2(x)))
        return x + self.down(hidden)


class SmallViT(nn.Module):
    """`layers` transformer layers of `width` features over patches of `patch` x `patch` pixels.

    Input (N, in_channels, size, size), output (N, num_classes).
    """

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
        count = (size // patch) ** 2
        self.position = nn.Parameter(0.02 * torch.randn(1, count, width))
        stack = [_Layer(width, heads) for _ in range(layers)]
        self.layers = nn.Sequential(*stack)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.layers(patches + self.position)
        return self.fc(self.norm(tokens).mean(1))


class RowLSTM(nn.Module):
    """An LSTM of `width` features that reads an image row by row.

    Input (N, in_channels, H, W), output (N, num_classes). The LSTM takes H steps of in_channels x W
    features; `features` is that product.
    """

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
        directions = 2 if bidirectional else 1
        self.fc = nn.Linear(directions * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)
        hidden, _ = self.lstm(rows)
        return self.fc(hidden.mean(1))
