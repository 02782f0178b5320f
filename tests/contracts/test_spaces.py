"""What every space in conf/space must do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml

from lightning_modules.models import SmallResNet
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.thresholds import counts
from lightning_modules.recipe import Recipe
from orchestrator.search.allocation import Sensitivity
from orchestrator.search.space import Terrain

SPACES = sorted((Path(__file__).parents[2] / "conf" / "space").glob("*.yaml"))


@pytest.fixture(scope="module")
def terrain() -> Terrain:
    structure = discover(SmallResNet(10), (torch.zeros(1, 1, 8, 8),))
    cost = Cost(structure)
    loss = np.linspace(0.05, 1.0, len(structure.groups))[:, None]
    return Terrain(
        structure,
        cost.macs,
        cost.macs(structure.sizes),
        "quantile",
        np.ones(structure.n_units),
        2,
        Sensitivity((0.5,), loss),
        max_flops_ratio=0.9,
    )


@pytest.fixture(params=SPACES, ids=lambda path: path.stem)
def space(request: pytest.FixtureRequest) -> Any:
    return Recipe.from_json(yaml.safe_load(request.param.read_text())).build()


def test_every_rung_of_the_chain_lies_within_the_distributions(space: Any, terrain: Terrain) -> None:
    distributions = space.distributions(terrain)
    for target in (0.7, 0.3, 0.1):
        params = space.chain(terrain, target, 0.0)
        assert set(params) == set(distributions)
        for name, value in params.items():
            assert distributions[name]._contains(distributions[name].to_internal_repr(value)), (name, value)


def test_the_chain_meets_its_targets_and_is_nested(space: Any, terrain: Terrain) -> None:
    before = terrain.structure.sizes
    for target in (0.7, 0.3, 0.1):
        proposal = space.propose(terrain, space.chain(terrain, target, 0.0))
        scores = np.zeros(terrain.structure.n_units)
        kept = counts(terrain.structure, scores, terrain.structure.full(), proposal.thresholds, proposal.rule)
        assert 0.8 * target < terrain.macs(kept) / terrain.dense_macs <= target + 1e-9
        assert (kept <= before).all()
        before = kept


def test_what_optuna_proposes_becomes_a_plan_for_every_group(space: Any, terrain: Terrain) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(10):
        trial = study.ask(space.distributions(terrain))
        proposal = space.propose(terrain, trial.params)
        assert set(proposal.thresholds) == {group.name for group in terrain.structure.groups}
        assert proposal.steps >= 1
        assert proposal.units >= 1


def test_the_same_parameters_give_the_same_plan(space: Any, terrain: Terrain) -> None:
    params = space.chain(terrain, 0.4, 0.0)
    assert space.propose(terrain, params) == space.propose(terrain, dict(params))


@pytest.mark.parametrize("name", ["uniform", "per_group"])
def test_multiples_of_the_mean_meet_the_chain_s_targets_too(name: str, terrain: Terrain) -> None:
    scores = np.random.default_rng(0).gamma(9.0, size=terrain.structure.n_units)
    rough = replace(terrain, rule="mean", scores=scores)
    space = Recipe.from_json({**yaml.safe_load((SPACES[0].parent / f"{name}.yaml").read_text()), "high": 2.0}).build()
    for target in (0.7, 0.3):
        proposal = space.propose(rough, space.chain(rough, target, 0.0))
        kept = counts(rough.structure, scores, rough.structure.full(), proposal.thresholds, "mean")
        assert 0.8 * target < rough.macs(kept) / rough.dense_macs <= target
