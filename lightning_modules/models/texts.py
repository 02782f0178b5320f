"""A transformer that reads texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """torch's `nn.TransformerEncoder` over tokens, their mean, and a linear layer.

    Takes by name `input_ids` (N, length), at most `length` tokens, and `attention_mask` (N,
    length), 0 where no token is. Output (N, num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        vocab_size: int = 2000,
        length: int = 48,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.embedding(input_ids) + self.position[:, : input_ids.shape[1]]
        is_token = attention_mask == 1
        read = self.norm(self.encoder(tokens, src_key_padding_mask=~is_token))
        weights = is_token.unsqueeze(-1).to(read.dtype)
        return self.fc((read * weights).sum(1) / weights.sum(1).clamp_min(1.0))
