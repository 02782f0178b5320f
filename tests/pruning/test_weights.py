"""Single weights as units where tensors are odd: shared, transposed, vectors, gone with their
block.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.weights import (
    Weight,
    apply,
    best_of,
    densities,
    effective_macs,
    macs_by_tensor,
    masks_of,
    shares,
    weight_structure,
    zeros_of,
)

WAYS = [
    Weight(),
    Weight("block", (4, 4)),
    Weight("block", (3, 5)),
    Weight("pattern", (2, 4)),
    Weight("pattern", (3, 7)),
]
way = pytest.mark.parametrize(
    "how", WAYS, ids=lambda how: f"{how.kind}{how.shape[0]}x{how.shape[1]}"
)


def weights_of(model: nn.Module, how: Weight) -> tuple[Structure, Structure]:
    """The structure of units and that of weights; input (N, 1, 8, 8)."""
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    return structure, weight_structure(structure, structure.full(), model, how)


def test_ties_of_a_pattern_go_to_the_earlier_input() -> None:
    assert best_of(torch.ones(1, 8), 1, 4).tolist() == [[True, False, False, False] * 2]


def test_a_dropped_block_has_no_weights() -> None:
    model = SmallResNet(10, width=4, blocks=2)
    structure = discover(model, (torch.zeros(1, 1, 8, 8),), depth=True)
    block = next(group for group in structure.groups if group.kind == "block")
    alive = structure.full()
    alive[block.start] = False
    smaller = remove(model, structure, alive)
    weights = weight_structure(structure, alive, smaller, Weight())
    assert not any(group.name.startswith(f"{block.name}.") for group in weights.groups)
    assert Cost(weights).macs(weights.sizes) == Cost(structure).macs(structure.counts(alive))
    assert Cost(weights).params(weights.sizes) == sum(
        parameter.numel() for parameter in smaller.parameters()
    )


class Tied(nn.Module):
    """Two modules with one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x[:, 0, 0])))))


@way
def test_a_shared_tensor_is_one_group_whose_macs_count_each_time(how: Weight) -> None:
    model = Tied()
    structure, weights = weights_of(model, how)
    assert macs_by_tensor(structure, structure.full()) == {"first.weight": 128, "head.weight": 80}
    assert Cost(weights).macs(weights.sizes) == 208
    assert Cost(weights).params(weights.sizes) == 64 + 16 + 90
    keep = np.arange(weights.n_units) % 2 == 0
    apply(model, masks_of(weights, keep, dict(model.named_parameters()), how))
    assert model.second.weight is model.first.weight
    found = densities(model, ["first.weight", "head.weight", "second.weight"])
    assert set(found) == {"first.weight", "head.weight"}
    effective = effective_macs(structure, structure.full(), found)
    assert effective == round(128 * found["first.weight"] + 80 * found["head.weight"])


class Odd(nn.Module):
    """A transposed convolution, a vector and a frozen matrix in products."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 4, 2)
        self.mix = nn.Parameter(torch.randn(4, 8))
        self.last = nn.Parameter(torch.randn(8))
        self.register_buffer("fixed", torch.randn(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (
            (self.up(x).mean(2).transpose(1, 2).transpose(1, 2) @ self.fixed).transpose(1, 2)
            @ self.mix
            @ self.last
        )


@way
def test_what_has_no_second_dimension_of_inputs_takes_no_pattern(how: Weight) -> None:
    model = Odd()
    structure, weights = weights_of(model, how)
    assert Cost(weights).macs(weights.sizes) == Cost(structure).macs(structure.sizes)
    reasons = {skipped.name: skipped.reason for skipped in weights.skipped}
    if how.kind == "pattern":
        assert (
            reasons["up.weight"]
            == "the inputs of a transposed convolution are not its second dimension"
        )
        assert reasons["last"] == f"its 1 inputs are no multiple of {how.shape[1]}"
    else:
        assert {group.name for group in weights.groups} == {"up.weight", "mix", "last"}


def test_masks_are_their_own() -> None:
    model = SmallResNet(10, width=4)
    _, weights = weights_of(model, Weight())
    elements = dict(model.named_parameters())
    keep = weights.full()
    keep[::2] = False
    before = keep.copy()
    for mask in masks_of(weights, keep, elements, Weight()).values():
        mask.fill_(True)  # as a rule that moves it does
    assert (keep == before).all()
    keep.flags.writeable = False
    assert masks_of(weights, keep, elements, Weight())


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=50)
def test_every_weight_is_in_one_block(rows: int, columns: int, high: int, wide: int) -> None:
    how, weight = (
        Weight("block", (high, wide)),
        torch.arange(rows * columns).reshape(rows, columns).double(),
    )
    numbers = shares(weight, how)
    assert len(numbers) == -(-rows // high) * -(-columns // wide)
    assert numbers[0] == pytest.approx(float(weight[:high, :wide].mean()))
    assert shares(torch.ones(rows, columns), how) == pytest.approx(np.ones(len(numbers)))


@pytest.mark.parametrize("shape", [(0, 4), (4, 4), (5, 4)])
def test_a_pattern_keeps_fewer_than_all(shape: tuple[int, int]) -> None:
    with pytest.raises(PlanError, match=r"n of m with 1 <= n < m.*; got \d, 4"):
        Weight("pattern", shape)


def test_the_zeros_of_a_model_are_its_masks() -> None:
    model = SmallResNet(10, width=4)
    with torch.no_grad():
        model.fc.weight[:, 2] = 0
    found = zeros_of(model, ["fc.weight", "conv1.weight", "gone.weight"])
    assert list(found) == ["fc.weight"]
    assert found["fc.weight"].sum() == 10 * 15
