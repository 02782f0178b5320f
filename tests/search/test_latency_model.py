"""Latency estimated from counts: exact where latency is linear, and close on a real network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.models import SmallResNet
from lightning_modules.pruning.cost import Cost, Features
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Structure
from orchestrator.latency.bench import Bench, LatencyConditions
from orchestrator.latency.engines import ENGINES
from orchestrator.search.lab.latency_model import (
    fit_latency,
    latency_model,
    pruned,
    random_counts,
)
from tests.structures import small_resnet

EXAMPLE = Inputs((torch.zeros(1, 1, 8, 8),))
MODEL = SmallResNet(10, blocks=2).eval()
BENCH = Bench(LatencyConditions(ENGINES["pytorch"], EXAMPLE), MODEL, lambda: 1.0)


def shallow() -> Structure:
    return small_resnet(blocks=2)


def deep() -> Structure:
    return small_resnet(blocks=2, depth=True)


def test_random_plans_begin_with_the_dense_one_and_lie_within_the_model() -> None:
    for structure in (shallow(), deep()):
        found = random_counts(structure, 40, 0)
        assert (found[0] == structure.sizes).all()
        assert (found >= structure.least).all()
        assert (found <= structure.sizes).all()
        assert (random_counts(structure, 40, 0) == found).all()
    blocks = [i for i, group in enumerate(deep().groups) if group.kind == "block"]
    assert set(random_counts(deep(), 40, 0)[:, blocks].ravel().tolist()) == {0, 1}


def test_features_are_shares_of_the_dense_model_and_fall_with_the_counts() -> None:
    features = Features(shallow())
    whole = features(shallow().sizes)
    assert whole == pytest.approx(np.ones_like(whole))
    counts = random_counts(shallow(), 20, 1)
    assert (features(counts) <= 1.0).all()
    assert features(counts)[3] == pytest.approx(features(counts[3]))


def test_a_latency_that_is_linear_in_the_macs_is_found_exactly() -> None:
    counts, cost = random_counts(shallow(), 48, 0), Cost(shallow())
    measured = 0.2 + 1e-6 * cost.macs_batch(counts) + 2e-6 * cost.params_batch(counts)
    found = fit_latency(Features(shallow()), counts, measured)
    assert found.worst_error < 1e-6
    assert (found.coefficients >= 0.0).all()
    unseen = random_counts(shallow(), 5, 9)
    estimated = [found(kept) for kept in unseen]
    assert estimated == pytest.approx(
        0.2 + 1e-6 * cost.macs_batch(unseen) + 2e-6 * cost.params_batch(unseen)
    )


def test_fewer_units_are_never_estimated_slower() -> None:
    counts = random_counts(shallow(), 48, 0)
    found = fit_latency(
        Features(shallow()), counts, np.random.default_rng(0).uniform(1.0, 2.0, 48)
    )  # noise alone
    for kept in counts[:10]:
        assert found(np.maximum(kept - 1, shallow().least)) <= found(kept) + 1e-12


def test_what_is_measured_has_the_shapes_of_the_plan() -> None:
    kept = np.maximum(shallow().sizes // 2, 1)
    model = pruned(MODEL, shallow(), kept)
    assert sum(p.numel() for p in model.parameters()) == Cost(shallow()).params(kept)
    assert EXAMPLE.call(model).shape == (1, 10)


def test_it_is_fitted_once_and_tells_its_error(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = latency_model(
        MODEL, shallow(), BENCH, tmp_path, "small", lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (48, 48)
    assert 0.0 < found.mean_error <= found.worst_error
    (path,) = tmp_path.glob("latency-*.json")
    assert json.loads(path.read_text())["held_out_error"]["mean"] == found.mean_error
    again = latency_model(
        MODEL, shallow(), BENCH, tmp_path, "small", lambda done, of: seen.append((0, 0))
    )
    assert seen[-1] == (48, 48)
    assert again(shallow().sizes) == found(shallow().sizes)
