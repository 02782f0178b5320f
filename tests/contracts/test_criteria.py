"""What every criterion in conf/method must do; a new YAML is picked up by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from lightning_modules.models import SmallResNet
from lightning_modules.pruning.criteria import Calibration, Criterion
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.thresholds import choose, counts, quantiles
from lightning_modules.recipe import Recipe

METHODS = sorted((Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"))
# a dead unit must come last only where the definition looks at what the unit does
BLIND = {"random"}


def load(path: Path) -> Criterion:
    built: Criterion = Recipe.from_json(yaml.safe_load(path.read_text())["criterion"]).build()
    return built


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(1, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm, self.project, self.fc = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depth(torch.relu(self.expand(x)))))
        return self.fc(self.project(x).mean((2, 3)))


MODELS = {"residual": lambda: SmallResNet(10, width=8), "depthwise": Depthwise}


def calibration(seed: int = 0, count: int = 3) -> Calibration:
    generator = torch.Generator().manual_seed(5)
    batches = [
        [torch.randn(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)]
        for _ in range(count)
    ]
    return Calibration(batches, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), seed)


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[request.param]().eval()


@pytest.fixture(params=METHODS, ids=lambda path: path.stem)
def method(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_scores_are_one_finite_number_per_unit(method: Path, model: nn.Module) -> None:
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    scores = load(method)(model, structure, calibration())
    assert scores.shape == (structure.n_units,)
    assert np.isfinite(scores).all()


def test_scores_are_the_same_twice_and_leave_the_model_alone(method: Path, model: nn.Module) -> None:
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = load(method)(model, structure, calibration())
    torch.randn(3)
    second = load(method)(model, structure, calibration())
    assert (first == second).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_scores_do_not_depend_on_the_order_of_batches(method: Path, model: nn.Module) -> None:
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    forward = calibration()
    backward = Calibration(list(reversed(list(forward.batches))), forward.loss, forward.seed)
    np.testing.assert_allclose(
        load(method)(model, structure, forward), load(method)(model, structure, backward), rtol=1e-5, atol=1e-8
    )


def test_a_dead_unit_comes_last(method: Path, model: nn.Module) -> None:
    if method.stem in BLIND:
        pytest.skip(f"{method.stem} does not look at the weights")
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    group = structure.groups[0]
    state = model.state_dict()
    for member in group.members:
        row = torch.from_numpy(structure.table[member.tensor, member.dim])
        if state[member.tensor].is_floating_point():
            state[member.tensor].index_fill_(member.dim, torch.nonzero(row == group.start + 2)[:, 0], 0.0)
    scores = load(method)(model, structure, calibration())[group.units]
    assert int(scores.argmin()) == 2


def test_scores_follow_the_units_when_they_are_permuted(method: Path, model: nn.Module) -> None:
    if method.stem in BLIND:
        pytest.skip(f"{method.stem} does not look at the weights")
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    before = load(method)(model, structure, calibration())
    group = structure.groups[0]
    order = np.random.default_rng(0).permutation(group.size)
    state = model.state_dict()
    for member in group.members:
        row = structure.table[member.tensor, member.dim]
        places = np.arange(len(row))
        mine = (row >= group.start) & (row < group.start + group.size)
        by_unit = {int(unit): np.flatnonzero(row == unit) for unit in np.unique(row[mine])}
        for unit, source in enumerate(order):
            places[by_unit[group.start + unit]] = by_unit[group.start + int(source)]
        state[member.tensor].copy_(state[member.tensor].index_select(member.dim, torch.from_numpy(places)))
    after = load(method)(model, structure, calibration())
    np.testing.assert_allclose(after[group.units], before[group.units][order], rtol=1e-5)


def test_a_pruned_model_is_scored_in_dense_ids(method: Path, model: nn.Module) -> None:
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    criterion = load(method)
    scores = criterion(model, structure, calibration())
    thresholds = quantiles(structure, structure.sizes // 2)
    kept = counts(structure, scores, structure.full(), thresholds, "quantile")
    keep = choose(structure, scores, structure.full(), kept)
    again = criterion(remove(model, structure, keep), structure.restrict(keep), calibration())
    assert again.shape == scores.shape
    assert np.isfinite(again[keep]).all()


def test_magnitudes_of_known_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0], [1.0, 0.0], [-2.0, 2.0]]))
    structure = discover(model, (torch.zeros(1, 2),))
    by_name = {path.stem: load(path)(model, structure, calibration()) for path in METHODS if path.stem != "random"}
    np.testing.assert_allclose(by_name["l1"], [7.0, 1.0, 4.0])
    np.testing.assert_allclose(by_name["l2"], [5.0, 1.0, 8.0**0.5])
    np.testing.assert_allclose(by_name["linf"], [4.0, 1.0, 2.0])
