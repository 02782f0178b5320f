"""Groups with a reduction over their units are pruned only where the meaning is proved to stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.pruning.discovery import discover


class OldWidth(nn.Module):
    """The largest channel at each place, for which an axis is cut by the dense width.

    With fewer channels it runs just as well, and takes the largest of several places.
    """

    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.branch and x.sum() > 1e9:
            x = x + 1
        x = self.first(x).relu()
        places = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 8)
        return self.head(self.second(x)) * places.amax(-1).mean()


@pytest.mark.parametrize("branch", [False, True])
def test_a_group_whose_pieces_would_be_joined_anew_stays_whole(branch: bool) -> None:
    structure = discover(OldWidth(branch), (torch.randn(1, 3, 8, 8),))
    assert structure.source == ("torch_pruning" if branch else "export")
    assert "first" not in [group.name for group in structure.groups]


def test_a_norm_over_channels_is_proved_by_values_and_without_a_graph() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, 9), nn.LayerNorm(9)
            self.head = nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                x = x + 1
            return self.head(self.norm(self.first(x)))

    structure = discover(Normed(), (torch.randn(2, 4),))
    assert [(group.name, group.mask_exact) for group in structure.groups] == [("first", False)]


def test_a_softmax_over_channels_is_proved_by_the_graph() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x).softmax(-1) + self.first(x).exp().sum(-1, keepdim=True))

    structure = discover(Chosen(), (torch.randn(2, 4),))
    assert [(group.name, group.mask_exact) for group in structure.groups] == [("first", False)]
