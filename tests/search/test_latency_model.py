"""Latency estimated from counts: closed forms in engines that are told, and a real network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.models import SmallResNet
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Counts, Structure
from orchestrator.latency.bench import Bench, LatencyConditions
from orchestrator.latency.engines import ENGINES, Engine
from orchestrator.latency.layers import LayerShape, layers_of
from orchestrator.latency.tables import LatencyTable, Tabulation, monotone, points
from orchestrator.search.lab.latency_model import (
    Estimation,
    LatencyModel,
    LayerSum,
    curve,
    pruned,
    random_counts,
)
from orchestrator.search.space import Allocation, SearchContext
from orchestrator.settings.targets import LATENCY_TARGET
from tests.structures import small_resnet

EXAMPLE = Inputs((torch.zeros(1, 1, 8, 8),))
MODEL = SmallResNet(10, blocks=2).eval()
DENSE_MS = 3.0


def shallow() -> Structure:
    return small_resnet(blocks=2)


def deep() -> Structure:
    return small_resnet(blocks=2, depth=True)


@dataclass
class Told:
    """An engine whose layers take what `ms` says of (inputs, outputs), and that counts them."""

    ms: Callable[[int, int], float]
    layers: int = 0
    models: int = 0
    seen: list[str] = field(default_factory=list)

    def engine(self) -> Engine:
        def kernels(layer: Any, example: Inputs, threads: int | None, evict: Any) -> float:
            self.layers += 1
            if isinstance(layer, nn.Linear):
                return self.ms(layer.in_features, layer.out_features)
            return self.ms(layer.in_channels, layer.out_channels)

        def prepare(model: nn.Module, example: Inputs, threads: int | None) -> Any:
            self.models += 1
            return lambda: example.call(model)

        return Engine("told", "an engine that is told", lambda: None, prepare, kernels)

    def conditions(self, example: Inputs = EXAMPLE) -> LatencyConditions:
        return LatencyConditions(self.engine(), example, 1)

    def sum_of(self, structure: Structure, model: nn.Module, example: Inputs) -> LayerSum:
        layers = layers_of(model, structure, example)
        tabulation = Tabulation(self.conditions(example), 8, 0, "m", None, lambda *_: None)
        return LayerSum(structure, layers, tabulation.tables(layers))

    def estimated(self, folder: Path | None, structure: Structure | None = None) -> LatencyModel:
        bench = Bench(self.conditions(), MODEL, lambda: DENSE_MS)
        structure = structure or shallow()
        return Estimation(MODEL, structure, bench, "m", 1, folder, self.seen.append).made()


def in_blocks(inputs: int, outputs: int) -> float:
    """Milliseconds of an engine that computes 8 channels at a time."""
    return 0.01 * -(-inputs // 8) * -(-outputs // 8)


def in_proportion(inputs: int, outputs: int) -> float:
    return 1e-4 * inputs * outputs


def test_random_plans_begin_with_the_dense_one_and_lie_within_the_model() -> None:
    for structure in (shallow(), deep()):
        found = random_counts(structure, 40, 0)
        assert (found[0] == structure.sizes).all()
        assert (found >= structure.least).all()
        assert (found <= structure.sizes).all()
        assert (random_counts(structure, 40, 0) == found).all()
    blocks = [i for i, group in enumerate(deep().groups) if group.kind == "block"]
    assert set(random_counts(deep(), 40, 0)[:, blocks].ravel().tolist()) == {0, 1}


def test_points_are_multiples_of_8_then_two_for_each_octave() -> None:
    assert points(100, 8) == [8, 16, 24, 32, 48, 64, 96, 100]
    assert points(24, 1) == [1, 8, 16, 24]
    assert points(128, 16) == [16, 32, 48, 64, 96, 128]
    assert points(3, 8) == [3]


def test_a_table_is_monotone_and_stays_what_it_is_where_it_is() -> None:
    noisy = np.random.default_rng(0).uniform(1.0, 2.0, (6, 7))
    smooth = monotone(noisy)
    assert (np.diff(smooth, axis=0) >= 0.0).all()
    assert (np.diff(smooth, axis=1) >= 0.0).all()
    assert monotone(smooth) == pytest.approx(smooth)


def test_between_its_points_a_table_is_a_plane_over_both_channels() -> None:
    axis = np.array([8, 16, 32])
    table = LatencyTable(axis, axis, np.outer(axis, axis).astype(float))
    assert table(np.array([8.0, 12.0, 24.0]), np.array([16.0, 20.0, 32.0])) == pytest.approx(
        [8 * 16, 12 * 20, 24 * 32]
    )
    # fewer channels than the first point take as long
    assert float(table(np.array(1.0), np.array(1.0))) == 64.0


def test_the_sum_of_layers_is_exact_at_multiples_of_8_and_shows_the_steps() -> None:
    structure = shallow()
    layers = Told(in_blocks).sum_of(structure, MODEL, EXAMPLE)
    for kept in (structure.sizes, np.full_like(structure.sizes, 8), structure.sizes // 16 * 8):
        expected = 0.0
        for module in pruned(MODEL, structure, kept).modules():
            if isinstance(module, nn.Conv2d):
                expected += in_blocks(module.in_channels, module.out_channels)
            if isinstance(module, nn.Linear):
                expected += in_blocks(module.in_features, module.out_features)
        assert float(layers(kept)) == pytest.approx(expected)
    assert layers.untabled == 0.0
    many = np.array([structure.sizes, structure.least])
    assert layers(many) == pytest.approx([float(layers(kept)) for kept in many])


def test_a_dropped_block_takes_its_layers_with_it() -> None:
    structure = deep()
    layers = Told(in_blocks).sum_of(structure, MODEL, EXAMPLE)
    without = structure.sizes
    names = [group.name for group in structure.groups]
    without[names.index("stages.2.1")] = 0
    saved = float(layers(structure.sizes) - layers(without))
    assert saved == pytest.approx(2 * in_blocks(64, 64))


def test_layers_in_groups_are_timed_by_their_outputs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Flatten(), nn.Linear(256, 2)
    ).eval()
    example = Inputs((torch.zeros(1, 3, 8, 8),))
    structure = discover(model, example)
    layers = Told(in_proportion).sum_of(structure, model, example)
    assert float(layers(np.array([8]))) == pytest.approx(
        in_proportion(3, 8) + in_proportion(8, 8) + in_proportion(128, 2)
    )


def test_a_layer_in_groups_has_whole_ones() -> None:
    options = {"kernel_size": 3}
    shape = LayerShape("Conv2d", (1, 8, 8), options, grouped=(4, 6))
    for asked, groups in ((1, 1), (8, 1), (16, 3), (24, 4)):
        layer, example = shape.layer(0, asked)
        assert (layer.groups, layer.in_channels, layer.out_channels) == (
            groups,
            4 * groups,
            6 * groups,
        )
        assert example.call(layer).shape[1] == 6 * groups


def test_macs_without_a_table_count_at_the_rate_of_the_others() -> None:
    structure = shallow()
    layers = layers_of(MODEL, structure, EXAMPLE)
    few = [layer for layer in layers if layer.weight == "conv1.weight"]
    tables = Tabulation(Told(in_proportion).conditions(), 8, 0, "m", None, lambda *_: None).tables(
        few
    )
    total = LayerSum(structure, few, tables)
    cost = Cost(structure)
    share = 16 * 9 * 64 / cost.macs(structure.sizes)
    assert total.untabled == pytest.approx(1.0 - share)
    assert float(total(structure.sizes)) == pytest.approx(in_proportion(1, 16) / share)
    # without any table the estimate follows the MACs
    alone = LayerSum(structure, [], {})
    half = np.maximum(1, structure.sizes // 2)
    ratio = cost.macs(half) / cost.macs(structure.sizes)
    assert float(alone(half) / alone(structure.sizes)) == pytest.approx(ratio)


def test_the_curve_goes_through_the_dense_model_and_rises() -> None:
    sums, ms = curve(np.array([4.0, 2.0, 3.0, 1.0]), np.array([8.0, 5.0, 4.0, 9.0]))
    assert sums.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert ms[-1] == 8.0
    assert (np.diff(ms) >= 0.0).all()


def test_the_estimate_of_the_dense_model_is_its_latency(tmp_path: Path) -> None:
    found = Told(in_proportion).estimated(tmp_path)
    assert found(shallow().sizes) == pytest.approx(DENSE_MS)
    assert 0.0 <= found.mean_error <= found.worst_error


def test_fewer_units_are_never_estimated_slower() -> None:
    noise = np.random.default_rng(0)
    found = Told(lambda inputs, outputs: float(noise.uniform(1.0, 2.0))).estimated(None)
    for kept in random_counts(shallow(), 10, 0):
        assert found(np.maximum(kept - 1, shallow().least)) <= found(kept) + 1e-12


def test_everything_is_measured_once_and_read_back(tmp_path: Path) -> None:
    told = Told(in_proportion)
    first = told.estimated(tmp_path)
    measured = (told.layers, told.models)
    assert told.seen[-1] == "17 of 17 models"
    again = told.estimated(tmp_path)
    assert (told.layers, told.models) == measured
    assert (again.ms == first.ms).all()
    assert again.mean_error == first.mean_error
    tables = list(tmp_path.glob("latency-layer-*.json"))
    assert {"shape", "inputs", "outputs", "ms"} == set(json.loads(tables[0].read_text()))
    # a second network with the same layers needs no table of its own
    told.estimated(tmp_path, deep())
    assert told.layers == measured[0]


def target_context(found: LatencyModel, structure: Structure, round_to: int) -> SearchContext:
    return SearchContext(
        structure,
        found.nanoseconds,
        found.nanoseconds(structure.sizes),
        "quantile",
        np.ones(structure.n_units),
        target=LATENCY_TARGET,
        round_to=round_to,
        method="l2",
    )


@pytest.mark.parametrize("round_to", [1, 8])
def test_a_plan_for_a_latency_is_within_it_by_the_estimate(round_to: int) -> None:
    structure = shallow()
    found = replace(
        Told(in_blocks).estimated(None), sums=np.array([0.1, 1.0]), ms=np.array([0.3, DENSE_MS])
    )
    context = target_context(found, structure, round_to)
    space = Allocation(flops_ratio=(0.01, 1.0), steps=(1, 1), rounds=(1, 1))
    assert LATENCY_TARGET in space.distributions(context)
    assert "flops_ratio" not in space.distributions(context)
    for ratio in (0.8, 0.5, 0.3):
        params = space.chain(context, ratio)
        assert params[LATENCY_TARGET] == pytest.approx(ratio)
        kept: Counts = space.propose(context, params).counts(structure)
        assert found(kept) <= ratio * DENSE_MS + 1e-6
        # it is the most that fits: with a block more of every group it would not
        more = np.minimum(kept + 8, structure.sizes)
        assert found(more) > ratio * DENSE_MS


@pytest.mark.parametrize("engine", ["pytorch", "onnxruntime"])
def test_layers_take_longer_the_more_channels_they_have(engine: str) -> None:
    conditions = LatencyConditions(ENGINES[engine], EXAMPLE, 1)
    layers = layers_of(MODEL, shallow(), EXAMPLE)
    last = [layer for layer in layers if layer.weight == "stages.2.1.conv2.weight"]
    tabulation = Tabulation(conditions, 32, 0, "m", None, lambda *_: None)
    (table,) = tabulation.tables(last).values()
    assert table.inputs.tolist() == [32, 64]
    assert (table.ms > 0.0).all()
    assert table.ms[1, 1] >= table.ms[0, 0]
