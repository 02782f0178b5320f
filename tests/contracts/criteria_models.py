"""One tiny model per way in which layers are coupled, and what to do to its units; input (N, 1, 8,
8), 10 logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.models import SmallResNet
from lightning_modules.pruning.structure import Keep, Structure
from lightning_modules.pruning.thresholds import choose
from tests.structures import discovered


class Plain(nn.Module):
    """Convolutions and a linear layer behind a flatten: a channel feeds a run of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.hidden = nn.Conv2d(6, 8, 3, stride=2), nn.Linear(8 * 9, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(1, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm, self.project, self.fc = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depth(torch.relu(self.expand(x)))))
        return self.fc(torch.relu(self.project(x)).mean((2, 3)))


class Grouped(nn.Module):
    """A unit is a whole convolution group, then a whole norm group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=4)
        self.norm, self.last = nn.GroupNorm(4, 12), nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        return self.fc(torch.relu(self.norm(self.last(x))).mean((2, 3)))


class Dense(nn.Module):
    """Each layer reads all before it side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.grow1, self.norm = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(10)
        self.grow2, self.fc = nn.Conv2d(10, 5, 3, padding=1), nn.Linear(15, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([x, torch.relu(self.grow1(x))], 1)
        x = torch.cat([x, torch.relu(self.grow2(torch.relu(self.norm(x))))], 1)
        return self.fc(x.mean((2, 3)))


class Encoder(nn.Module):
    """An image's rows as tokens through `nn.TransformerEncoderLayer` (`nn.MultiheadAttention`)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 10, dropout=0.1, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x[:, 0])).mean(1))


class Attention(nn.Module):
    """Queries, keys and values in one hand-written projection."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.embed, self.qkv, self.proj = nn.Linear(8, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0])
        n, tokens, _ = x.shape
        q, k, v = (
            self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )
        mixed = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))
        return self.head(torch.relu(x).mean(1))


class Recurrent(nn.Module):
    """An image's rows in turn; the hidden units meet their weights in four packed gates."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.hidden, self.head = (
            nn.LSTM(8, 6, 2, batch_first=True),
            nn.Linear(6, 8),
            nn.Linear(8, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.rnn(x[:, 0])[0][:, -1])))


def _frozen() -> nn.Module:
    model = Plain()
    for parameter in [
        *model.first.parameters(),
        *model.second.parameters(),
        *model.norm.parameters(),
    ]:
        parameter.requires_grad_(False)
    return model


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": lambda: SmallResNet(10, width=4),
    "depthwise": Depthwise,
    "grouped": Grouped,
    "dense": Dense,
    "blocks": lambda: SmallResNet(10, width=4, blocks=2),
    "encoder": Encoder,
    "head_dim": Encoder,
    "attention": Attention,
    "recurrent": Recurrent,
    "frozen": _frozen,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "blocks": {"depth": True},
    "head_dim": {"attention": "head_dim"},
}
"""How to discover a model, where it is not the default."""


def make(name: str) -> nn.Module:
    """A model of one's own, always the same."""
    return copy.deepcopy(_made(name))


@cache
def _made(name: str) -> nn.Module:
    """In double precision, so that differences are facts and not rounding; nothing is 0, 1 or equal
    by default.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MAKERS[name]()
        with torch.no_grad():
            for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.dim() == 1 and tensor.is_floating_point():
                    shift = key.endswith(("bias", "mean")) or "bias_" in key
                    tensor.normal_(0.0, 0.2) if shift else tensor.uniform_(0.5, 1.5)
    return model.double().eval()


def structure_of(name: str) -> Structure:
    return discovered(
        f"coupled {name}",
        lambda: (make(name).float(), (torch.zeros(1, 1, 8, 8),)),
        **OPTIONS.get(name, {}),
    )


@dataclass(frozen=True)
class Case:
    model: nn.Module
    structure: Structure


def permute(case: Case, order: npt.NDArray[np.intp]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Moves unit `order[u]` to the place of `u`, in place; per tensor, what it did to it."""
    moves: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, dim), row in case.structure.table.items():
        places = np.arange(len(row))
        for unit in np.unique(row[row >= 0]):
            places[row == unit] = np.flatnonzero(row == order[unit])
        moves.setdefault(name, []).append((dim, torch.from_numpy(places)))

    def move(name: str) -> Callable[[Tensor], Tensor]:
        def moved(tensor: Tensor) -> Tensor:
            for dim, places in moves.get(name, []):
                tensor = tensor.index_select(dim, places)
            return tensor

        return moved

    did = {name: move(name) for name in case.model.state_dict()}
    with torch.no_grad():
        for name, tensor in case.model.state_dict().items():
            tensor.copy_(did[name](tensor))
    return did


def within_groups(structure: Structure) -> npt.NDArray[np.intp]:
    rng = np.random.default_rng(0)
    return np.concatenate([group.start + rng.permutation(group.size) for group in structure.groups])


def half(structure: Structure) -> Keep:
    return choose(
        structure,
        np.random.default_rng(1).random(structure.n_units),
        structure.full(),
        structure.sizes // 2,
    )


def kill(case: Case, place: int = 1) -> None:
    """All weights of one unit of every group are zero."""
    state = case.model.state_dict()
    for group in case.structure.groups:
        for member in group.members:
            row = torch.from_numpy(case.structure.table[member.tensor, member.dim])
            state[member.tensor].index_fill_(
                member.dim, torch.nonzero(row == group.start + place)[:, 0], 0.0
            )
