"""Layers that stay whole: as the user says, or because they are frozen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.cost import Cost, prunable_macs_fraction
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.left_whole import FROZEN, KEPT, left_whole, tensors_to_keep
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Structure, some_of
from lightning_modules.pruning.weights import Weight, weight_structure

EXAMPLE = (torch.zeros(1, 1, 8, 8),)


@pytest.fixture(scope="module")
def dense() -> tuple[nn.Module, Structure]:
    torch.manual_seed(0)
    model = SmallResNet(10, width=4)
    return model, discover(model, EXAMPLE)


def kept(model: nn.Module, structure: Structure, *patterns: str) -> Structure:
    return left_whole(structure, tensors_to_keep(model, patterns, prune_frozen=False))


def test_without_a_pattern_nothing_changes(dense: tuple[nn.Module, Structure]) -> None:
    model, structure = dense
    assert kept(model, structure) is structure


def test_a_kept_layer_keeps_its_shape_and_costs_stay_exact(
    dense: tuple[nn.Module, Structure],
) -> None:
    model, structure = dense
    layer = "stages.1.0.conv1"
    smaller = kept(model, structure, layer)
    lost = [
        group.name
        for group in structure.groups
        if any(member.tensor == f"{layer}.weight" for member in group.members)
    ]
    assert len(lost) == 2  # what it takes and what it gives
    assert {group.name for group in structure.groups} - {g.name for g in smaller.groups} == set(
        lost
    )
    layers = {s.name for s in smaller.skipped if s.reason == KEPT}
    assert layer in layers
    assert smaller.prunable_layers == structure.prunable_layers - len(layers)
    cost, before = Cost(smaller), Cost(structure)
    assert cost.macs(smaller.sizes) == before.macs(structure.sizes)
    half = np.maximum(1, smaller.sizes // 2)
    pruned = remove(model, smaller, some_of(smaller, half))
    whole, cut = dict(model.named_parameters()), dict(pruned.named_parameters())
    assert cut[f"{layer}.weight"].shape == whole[f"{layer}.weight"].shape
    assert cost.params(half) == sum(p.numel() for p in pruned.parameters())
    assert cost.macs(half) == Cost(discover(pruned, EXAMPLE)).macs(discover(pruned, EXAMPLE).sizes)
    assert prunable_macs_fraction(smaller) <= prunable_macs_fraction(structure)


def test_a_pattern_stands_for_all_inside_and_must_fit_something(
    dense: tuple[nn.Module, Structure],
) -> None:
    model, structure = dense
    assert kept(model, structure, "*").groups == ()
    assert set(tensors_to_keep(model, ["stages.0"], False)) == {
        name for name, _ in model.named_parameters() if name.startswith("stages.0.")
    }
    with pytest.raises(ConfigError, match=r"nothing fits 'stage.0'; nearest: stages.0"):
        tensors_to_keep(model, ["stage.0"], False)


def test_frozen_layers_stay_whole_unless_they_are_to_be_pruned_and_then_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    structure = discover(model, (torch.zeros(1, 4),))
    assert [group.name for group in structure.groups] == ["0", "2"]
    smaller = kept(model, structure)
    assert [group.name for group in smaller.groups] == ["2"]
    assert [(s.name, s.reason) for s in smaller.skipped if s.reason == FROZEN] == [("0", FROZEN)]
    assert left_whole(structure, tensors_to_keep(model, [], prune_frozen=True)) is structure
    pruned = remove(model, structure, some_of(structure, np.array([3, 8])))
    assert pruned[0].out_features == 3
    assert not pruned[0].weight.requires_grad


def test_single_weights_of_kept_layers_are_not_pruned_either(
    dense: tuple[nn.Module, Structure],
) -> None:
    model, structure = dense
    smaller = kept(model, structure, "stages.0")
    weights = weight_structure(smaller, smaller.full(), model, Weight("weight", (1, 1)))
    assert not [group.name for group in weights.groups if group.name.startswith("stages.0.")]
    assert {layer.reason for layer in weights.skipped} == {KEPT}
