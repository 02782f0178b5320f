"""Recurrent networks that read sequences of different lengths in both directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import ConfigError

KINDS = {"gru": nn.GRU, "lstm": nn.LSTM}


class _BothWays(nn.Module):
    """Two recurrent layers, one of which reads each sequence from its last step to its first.

    Both have units of their own, which torch's bidirectional layers have in common. Right of a
    sequence's end is nothing that an earlier step could see, so that outputs on its steps are those
    on the packed sequence.
    """

    def __init__(self, kind: str, features: int, width: int) -> None:
        super().__init__()
        self.forwards = KINDS[kind](features, width, batch_first=True)
        self.backwards = KINDS[kind](features, width, batch_first=True)

    def forward(self, x: Tensor, mirrored: Tensor) -> Tensor:
        ahead, _ = self.forwards(x)
        back, _ = self.backwards(_picked(x, mirrored))
        return torch.cat([ahead, _picked(back, mirrored)], -1)


class SpeechNet(nn.Module):
    """A convolution over time, `layers` recurrent layers of `width` units in each direction, the
    mean over a sequence's steps, and a linear layer.

    Takes by name `features` (N, steps, features) and `lengths` (N,), the steps of each sequence.
    Output (N, num_classes). `kind` is gru or lstm.
    Errors: ConfigError for another kind.
    """

    def __init__(
        self, num_classes: int, kind: str, features: int = 12, width: int = 48, layers: int = 2
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"model.kind must be one of {list(KINDS)}; got '{kind}'")
        self.front = nn.Conv1d(features, width, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm1d(width)
        widths = [width] + [2 * width] * (layers - 1)
        self.layers = nn.ModuleList([_BothWays(kind, wide, width) for wide in widths])
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(features.shape[1], device=features.device)
        inside = steps < lengths[:, None]
        x = F.relu(self.norm(self.front(features.transpose(1, 2)))).transpose(1, 2)
        mirrored = torch.where(inside, lengths[:, None] - 1 - steps, steps)
        for layer in self.layers:
            x = layer(x, mirrored)
        weights = inside.unsqueeze(-1).to(x.dtype)
        return self.fc((x * weights).sum(1) / weights.sum(1).clamp_min(1.0))


def _picked(x: Tensor, steps: Tensor) -> Tensor:
    """Of each sequence the values (N, steps, features) at the given steps (N, steps)."""
    samples = torch.arange(x.shape[0], device=x.device)[:, None]
    return x.flatten(0, 1)[steps + samples * x.shape[1]]
