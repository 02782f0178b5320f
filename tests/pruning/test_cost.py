"""Costs in closed form are those that torch counts on the smaller model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import LARGE, MEDIUM, SMALL, Case, build, case, plan
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.pruning.cost import Cost, prunable_macs_fraction
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Group, Product, Structure, isomorphic_classes

# torch counts an LSTM on the CPU as nothing.
FAST = [name for name in [*SMALL, *MEDIUM] if name != "recurrent"]
ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def counted(model: nn.Module, this: Case) -> int:
    """Half of torch's FLOPs at batch 1; attention on the path that is made of matrix products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model.eval()(*(x[:1] for x in this.inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def dense(product: Product) -> int:
    return product.constant * math.prod(len(factor) for factor in product.factors)


@pytest.mark.parametrize("name", ALL)
def test_macs_and_params_are_exact_on_twenty_plans(name: str) -> None:
    this, rng = case(name), np.random.default_rng(0)
    cost = Cost(this.structure)
    assert cost.macs(this.structure.sizes) == counted(this.model, this)
    plans = [plan(this.structure, rng) for _ in range(20)]
    for keep in plans:
        small = remove(this.model, this.structure, keep)
        counts = this.structure.counts(keep)
        assert cost.macs(counts) == counted(small, this)
        assert cost.params(counts) == sum(p.numel() for p in small.parameters())
    many = np.array([this.structure.counts(keep) for keep in plans]).reshape(4, 5, -1)
    assert cost.macs_batch(many).tolist() == [[cost.macs(c) for c in row] for row in many]
    assert cost.params_batch(many).tolist() == [[cost.params(c) for c in row] for row in many]


def test_a_recurrent_layer_costs_its_weights_at_every_step() -> None:
    this = case("recurrent")
    lstm = {p.tensor: dense(p) for p in this.structure.macs if p.name == "lstm"}
    assert lstm == {"lstm.weight_ih_l0": 5 * 4 * 8 * 6, "lstm.weight_hh_l0": 5 * 4 * 8 * 8}


@pytest.mark.parametrize(
    "name", [*SMALL, *MEDIUM, pytest.param("mobilenet_v2", marks=pytest.mark.slow)]
)
def test_macs_belong_to_weights_and_only_attention_multiplies_activations(name: str) -> None:
    """The MACs per weight are the positions it is applied to: whole, and equal for all layers at
    one resolution.
    """
    this = case(name)
    weights = {key: p for key, p in this.model.named_parameters() if p.dim() > 1}
    owned: dict[str, int] = {}
    for product in this.structure.macs:
        owned[product.tensor] = owned.get(product.tensor, 0) + dense(product)
    attention = owned.pop("", 0)
    assert (attention > 0) == (name in ("encoder", "vit", "timm_vit", "cross_attention"))
    assert attention + sum(owned.values()) == Cost(this.structure).macs(this.structure.sizes)
    assert all(macs % weights[key].numel() == 0 for key, macs in owned.items())
    applied = {axis[0] for axis in this.structure.table} & set(weights) - set(owned)
    assert all("embed" in key or "position" in key or "_token" in key for key in applied)
    assert all(product.tensor == product.name for product in this.structure.params)


def test_a_weight_in_a_layout_of_its_own_is_found() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bo,oc->bc", x @ self.left.t(), self.right)

    structure = discover(Turned(), (torch.randn(2, 6),))
    assert {p.tensor: dense(p) for p in structure.macs} == {"left": 48, "right": 24}


def test_isomorphic_groups_agree_in_kind_size_and_axes() -> None:
    structure = case("resnet18").structure
    classes = isomorphic_classes(structure)
    assert sorted(index for members in classes for index in members) == list(
        range(len(structure.groups))
    )
    names = [[structure.groups[index].name for index in members] for members in classes]
    assert ["layer1.0.conv1", "layer1.1.conv1"] in names
    assert ["layer2.0.conv1"] in names
    assert ["layer2.1.conv1"] in names
    heads = case("vit").structure
    names = [
        [heads.groups[index].kind for index in members] for members in isomorphic_classes(heads)
    ]
    assert ["head", "head"] in names
    assert ["neuron", "neuron"] in names


def test_a_hand_made_structure_costs_what_the_formula_says() -> None:
    row = np.array([0, 1, 2, -1, -1], dtype=np.int32)
    twice = np.array([0, 0, 1, 1, 2, 2, 3, 4], dtype=np.int32)
    groups = (Group("a", 0, 3, (), True), Group("b", 3, 2, (), True))
    products = (Product("p", 7, (row, twice)), Product("q", 11, ()), Product("r", 10**19, ()))
    structure = Structure(groups, {}, products[:2], products, (), 0, 0)
    cost = Cost(structure)
    for a, b in ((3, 2), (1, 2), (2, 1)):
        counts = np.array([a, b])
        assert cost.macs(counts) == 7 * (a + 2) * (2 * a + b) + 11
        assert cost.params(counts) == cost.macs(counts) + 10**19
    assert math.isclose(prunable_macs_fraction(structure), 7 * 5 * 8 / (7 * 5 * 8 + 11))


def test_the_prunable_share_of_a_resnet_is_all_of_it() -> None:
    assert prunable_macs_fraction(case("resnet18").structure) == 1.0
    frozen = case("input_residual").structure
    assert 0.0 < prunable_macs_fraction(frozen) < 1.0
    assert build("resnet18")[0].training
