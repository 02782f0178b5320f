"""Copies of modules that have run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.pruning.clone import copy_of


class Keeps(nn.Module):
    """It keeps what its forward pass computed, for pictures and for later."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        self.maps.append(self.last)
        self.both = (self.last, {"twice": 2 * self.last})
        return self.last.sum()


def test_tensors_with_a_history_are_copied_without_it() -> None:
    module = Keeps()
    module(torch.randn(4, 3)).backward()
    twin = copy_of(module)
    for tensor in (twin.last, twin.maps[0], twin.both[0], twin.both[1]["twice"]):
        assert not tensor.requires_grad
    torch.testing.assert_close(twin.last, module.last.detach())
    assert twin.last is twin.maps[0]
    assert twin.layer.weight is not module.layer.weight
    assert module.last.grad_fn is not None
