"""Weights that forward computes from parameters: layers like all others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import apart, outputs, plan, randomise
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import remove


class Standard(nn.Conv2d):
    """Standardised over inputs and kernel, as in weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Normed(nn.Conv2d):
    """The same by way of a batch norm over a reshaped weight, with a gain."""

    def __init__(self, *args: int, **options: int) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.1).view(-1)
        w = F.batch_norm(flat, None, None, weight=gain, training=True).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Scaled(nn.Conv2d):
    """Scaled by a constant, with a low-rank matrix added."""

    def __init__(self, *args: int, **options: int) -> None:
        super().__init__(*args, **options)
        self.up = nn.Parameter(torch.randn(self.out_channels, 2))
        self.down = nn.Parameter(torch.randn(2, self.in_channels))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight * 0.5 + (self.up @ self.down)[..., None, None]
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


def by_mask(*args: int, **options: int) -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(*args, **options), "weight", 0.3)


def weight_norm(*args: int, **options: int) -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(*args, **options))


def spectral_norm(*args: int, **options: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(*args, **options))


def old_weight_norm(*args: int, **options: int) -> nn.Module:
    return nn.utils.weight_norm(nn.Conv2d(*args, **options))


EXACT = {"scaled": Scaled, "masked": by_mask, "spectral_norm": spectral_norm}
INEXACT = {
    "standard": Standard,
    "normed": Normed,
    "weight_norm": weight_norm,
    "old_weight_norm": old_weight_norm,
}


def net(conv) -> nn.Sequential:  # type: ignore[no-untyped-def]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        conv(8, 12, 3, padding=1),
        nn.ReLU(),
        conv(12, 10, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 3),
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", [*EXACT, *INEXACT])
def test_a_computed_weight_leads_back_to_its_parameter(name: str) -> None:
    model = net({**EXACT, **INEXACT}[name])
    structure = discover(model, (torch.randn(1, 1, 8, 8),))
    sizes = {group.name: group.size for group in structure.groups}
    assert {key: sizes[key] for key in ("0", "2", "4")} == {"0": 8, "2": 12, "4": 10}
    assert structure.prunable_layers == structure.layers - 1
    assert [skipped.name for skipped in structure.skipped] == ["8"]
    if name in EXACT:
        assert all(group.mask_exact for group in structure.groups)


@pytest.mark.parametrize("name", EXACT)
def test_removing_a_computed_weight_is_masking_it(name: str) -> None:
    x = torch.randn(1, 1, 8, 8).double()
    model = randomise(net(EXACT[name])).double().eval()
    structure = discover(model, (x,))
    keep = plan(structure, np.random.default_rng(0))
    small = remove(model, structure, keep)
    zeroed = masked(model, structure, keep)
    assert apart(outputs(small, (x,)), outputs(zeroed, (x,))) < 1e-10
    convolutions = [module for module in small if isinstance(module, nn.Conv2d)]
    kept = structure.counts(keep)
    assert [module.out_channels for module in convolutions] == kept[:3].tolist()


def test_every_layer_is_prunable_or_skipped() -> None:
    class Dynamic(nn.Module):
        """A kernel that the input makes."""

        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.head = nn.Linear(4, 16), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.kernel(x.mean(1)).reshape(4, 4)
            return self.head(F.linear(x, weight))

    structure = discover(Dynamic(), (torch.randn(1, 5, 4),))
    assert structure.layers == 3
    skipped = {skipped.name: skipped.reason for skipped in structure.skipped}
    assert "kernel" in skipped
    assert any("computed in forward" in reason for reason in skipped.values())


def test_an_einsum_with_a_parameter_is_a_layer() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Parameter(torch.randn(6, 8))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.einsum("btc,cd->btd", x, self.wide).relu())

    structure = discover(Mixed(), (torch.randn(1, 5, 6),))
    assert [(group.name, group.size) for group in structure.groups] == [("wide", 8)]
    assert (structure.layers, structure.prunable_layers) == (2, 1)


def test_a_tensor_that_a_model_keeps_is_copied_without_its_history() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 3)
            self.maps: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.first(x).relu()
            self.maps = [self.last]
            return self.head(self.last.mean((2, 3)))

    model, x = Keeps(), torch.randn(2, 1, 8, 8)
    model(x)
    twin = copy_of(model)
    assert twin.last.grad_fn is None
    assert twin.maps[0] is twin.last
    assert model.last.grad_fn is not None
    structure = discover(model, (x,))
    keep = plan(structure, np.random.default_rng(0))
    assert remove(model, structure, keep)(x).shape == (2, 3)
