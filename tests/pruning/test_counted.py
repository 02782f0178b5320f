"""MACs are what torch counts, or the groups that change them stay whole, whatever finds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import plan
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.models import SmallViT
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.discovery.counted import multiplications
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Structure


def counted(model: nn.Module, x: Tensor) -> int:
    """Half of torch's FLOPs, with attention on the path that is made of matrix products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model.eval()(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def is_exact(model: nn.Module, x: Tensor, structure: Structure) -> bool:
    """Whether the closed form is torch's count for the dense model and for three plans."""
    cost, rng = Cost(structure), np.random.default_rng(0)
    same = [cost.macs(structure.sizes) == counted(model, x)]
    for _ in range(3):
        keep = plan(structure, rng)
        small = remove(model, structure, keep)
        same.append(cost.macs(structure.counts(keep)) == counted(small, x))
    return all(same)


class Guarded(SmallViT):
    """A branch on data, which `torch.export` refuses, in front of attention."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.isfinite(x).all():
            x = torch.nan_to_num(x)
        return super().forward(x)


class Functional(nn.Module):
    """Products outside of layers: a functional convolution, activations times activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 12)
        self.kernel = nn.Parameter(torch.randn(4, 1, 3))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = x + 1
        x = self.second(self.first(x).relu())
        moved = F.conv1d(x.mean(1, keepdim=True), self.kernel, padding=1)
        return self.head(x + moved.transpose(1, 2) @ moved @ x.transpose(1, 2) @ x)


class Tangled(nn.Module):
    """A product of three tensors, for which there is no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        return self.head(torch.einsum("bti,bsi,bsj->btj", y, y, y))


CASES = {
    "guarded": (lambda: Guarded(num_classes=10), (1, 1, 8, 8), "torch_pruning"),
    "functional": (Functional, (1, 12, 6), "torch_pruning"),
    "tangled": (Tangled, (1, 5, 6), "export"),
}


@pytest.mark.parametrize("name", CASES)
def test_macs_are_torchs_count_for_every_source(name: str) -> None:
    make, shape, source = CASES[name]
    model, x = make(), torch.randn(shape)
    structure = discover(model, (x,))
    assert structure.source == source
    assert structure.groups
    assert is_exact(model, x, structure)


def test_macs_without_a_closed_form_are_named() -> None:
    structure = discover(Tangled(), (torch.randn(1, 5, 6),))
    reasons = [skipped.reason for skipped in structure.skipped]
    assert any("known for the dense model only" in reason for reason in reasons)


def test_a_group_whose_macs_have_no_closed_form_stays_whole() -> None:
    class Alike(nn.Module):
        """The tokens' similarities, which torch-pruning does not see."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                x = x + 1
            y = self.hidden(x).relu()
            with torch.no_grad():
                weight = (y @ y.transpose(1, 2)).mean()
            return self.head(y) * weight

    model, x = Alike(), torch.randn(1, 5, 6)
    structure = discover(model, (x,))
    assert not structure.groups
    assert any("its cost says" in skipped.reason for skipped in structure.skipped)
    assert Cost(structure).macs(np.array([], dtype=np.int64)) == counted(model, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_recurrent_and_compiled_code_is_counted() -> None:
    def macs(model: nn.Module, x: Tensor) -> int:
        with torch.no_grad(), multiplications(model) as counter:
            model(x)
        return counter.macs

    assert macs(nn.LSTM(6, 8), torch.randn(5, 1, 6)) == 5 * 4 * 8 * (6 + 8)
    assert macs(torch.jit.trace(nn.Linear(6, 8), torch.randn(2, 6)), torch.randn(2, 6)) == 96


def test_a_refused_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    discover(Guarded(num_classes=10), (torch.randn(1, 1, 8, 8),))
    assert capfd.readouterr() == ("", "")
