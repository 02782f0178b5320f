"""Ablation of units and of whole blocks: differences of measured losses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.criteria import Ablation, Calibration, Magnitude, block_scores
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Structure

BATCHES = [
    torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)
]
DATA = Calibration(BATCHES, lambda model, batch: model(batch).square().mean())


def mean_loss(model: nn.Module, data: Calibration = DATA) -> float:
    with torch.no_grad():
        return float(np.mean([float(data.loss(model, batch)) for batch in data.batches]))


def net(norm: bool = False) -> tuple[nn.Module, Structure]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(2, 5), nn.LayerNorm(5) if norm else nn.ReLU(), nn.Linear(5, 2)
        ).eval()
    return model.double(), discover(copy.deepcopy(model).float(), (torch.zeros(1, 2),))


@pytest.mark.parametrize("norm", [False, True], ids=["zeroed", "removed"])
def test_ablation_is_the_loss_without_the_unit_minus_the_loss(norm: bool) -> None:
    model, structure = net(norm)
    assert structure.groups[0].mask_exact != norm
    expected = []
    for unit in range(5):
        keep = structure.full()
        keep[unit] = False
        expected.append(mean_loss(remove(model, structure, keep)) - mean_loss(model))
    np.testing.assert_allclose(Ablation()(model, structure, DATA), expected, rtol=1e-9)


def test_a_slice_of_neighbours_in_magnitude_shares_its_loss() -> None:
    model, structure = net()
    order = np.argsort(Magnitude()(model, structure, DATA))
    scores = Ablation(slice=2)(model, structure, DATA)
    sizes = []
    for part in np.array_split(order, 3):
        keep = structure.full()
        keep[part] = False
        gained = mean_loss(remove(model, structure, keep)) - mean_loss(model)
        np.testing.assert_allclose(scores[part], gained / len(part), rtol=1e-9)
        sizes.append(len(part))
    assert max(sizes) == 2


def test_a_slice_never_takes_the_whole_group() -> None:
    for norm in (False, True):
        model, structure = net(norm)
        assert len(set(Ablation(slice=100)(model, structure, DATA))) == 2


def test_the_last_unit_of_a_group_is_measured_too() -> None:
    model, structure = net(norm=True)
    keep = np.array([False, False, True, False, False])
    smaller = remove(model, structure, keep)
    scores = Ablation()(smaller, structure.restrict(keep), DATA)
    nothing = copy.deepcopy(smaller)
    with torch.no_grad():
        for parameter in [*nothing[0].parameters(), *nothing[1].parameters(), nothing[2].weight]:
            parameter.zero_()
    np.testing.assert_allclose(
        scores, [0.0, 0.0, mean_loss(nothing) - mean_loss(smaller), 0.0, 0.0]
    )


def test_a_slice_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="slice must be at least 1"):
        Ablation(slice=0)


def test_without_batches_there_is_no_score() -> None:
    model, structure = net()
    with pytest.raises(PlanError, match="calibration_batches"):
        Ablation()(model, structure, Calibration([], DATA.loss))


def images() -> tuple[nn.Module, Structure, Calibration]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallResNet(3, width=4, blocks=2).eval()
        batches = [torch.randn(2, 1, 8, 8) for _ in range(2)]
    structure = discover(model, (batches[0],), depth=True)
    return model, structure, Calibration(batches, lambda model, batch: model(batch).square().mean())


def replaced(model: nn.Module, path: str) -> nn.Module:
    twin = copy.deepcopy(model)
    parent, _, leaf = path.rpartition(".")
    setattr(twin.get_submodule(parent), leaf, nn.Identity())
    return twin


def test_a_block_is_worth_the_loss_without_it() -> None:
    model, structure, data = images()
    scores = block_scores(model, structure, data)
    blocks = [group for group in structure.groups if group.kind == "block"]
    assert len(blocks) >= 2
    for group in blocks:
        expected = mean_loss(replaced(model, group.name), data) - mean_loss(model, data)
        assert scores[group.start] == pytest.approx(expected, abs=1e-7)
    units = np.array(
        [group.kind != "block" for group in structure.groups for _ in range(group.size)]
    )
    assert not scores[units].any()
    assert scores[~units].any()


def test_a_block_that_is_gone_scores_nothing() -> None:
    model, structure, data = images()
    first, second = [group for group in structure.groups if group.kind == "block"][:2]
    keep = structure.full()
    keep[first.start] = False
    smaller = remove(model, structure, keep)
    scores = block_scores(smaller, structure.restrict(keep), data)
    assert scores[first.start] == 0.0
    expected = mean_loss(replaced(smaller, second.name), data) - mean_loss(smaller, data)
    assert scores[second.start] == pytest.approx(expected, abs=1e-7)


def test_without_blocks_nothing_is_measured() -> None:
    model, structure = net()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        raise AssertionError("no block, no loss")

    assert not block_scores(model, structure, Calibration(BATCHES, loss)).any()
