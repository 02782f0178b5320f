"""What single weights as units must do, in whatever way layers are coupled: exact counts, patterns
and costs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from criteria_models import make, structure_of
from torch import Tensor, nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.schedules import RETURNING, SCHEDULES
from lightning_modules.pruning.structure import Counts, Keep, Structure
from lightning_modules.pruning.thresholds import at_fraction, choose
from lightning_modules.pruning.weights import (
    Masks,
    Weight,
    apply,
    densities,
    effective_macs,
    macs_by_tensor,
    masks_of,
    shares,
    unit_scores,
    weight_structure,
    zeros_of,
)
from tests.facts import hold
from tests.structures import discovered

PATTERNS = [(1, 4), (2, 4), (3, 7), (1, 2)]
BLOCKS = [(4, 4), (3, 5), (1, 8), (100, 100)]
WEIGHT, BLOCK, PATTERN = Weight(), Weight("block", (3, 5)), Weight("pattern", (2, 4))
# Couplings that differ most meet each kind of unit; every other coupling and every other shape is
# met once.
PAIRS = [
    *[
        (name, how)
        for name in ("residual", "grouped", "encoder", "recurrent")
        for how in (WEIGHT, BLOCK, PATTERN)
    ],
    *[(name, WEIGHT) for name in ("plain", "depthwise", "dense", "attention")],
    *[("plain", Weight("block", shape)) for shape in BLOCKS if shape != BLOCK.shape],
    *[("plain", Weight("pattern", shape)) for shape in PATTERNS if shape != PATTERN.shape],
]
SEEDS = range(3)


class Sevens(nn.Module):
    """Inputs that come in sevens, also behind a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 14, 3), nn.Conv2d(14, 7, 3)
        self.head = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def sevens() -> Structure:
    return discovered("sevens", lambda: (Sevens(), (torch.zeros(1, 1, 8, 8),)))


def model_of(name: str) -> nn.Module:
    return make(name).float()


@cache
def weights_of(name: str, how: Weight) -> Structure:
    return weight_structure(structure_of(name), structure_of(name).full(), model_of(name), how)


def sizes_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().abs() for name, parameter in model.named_parameters()}


def pruned(model: nn.Module, weights: Structure, how: Weight, kept: Counts) -> tuple[Keep, Masks]:
    """`model` with all but the `kept` largest units of each tensor at zero."""
    scores = unit_scores(weights, sizes_of(model), how)
    keep = choose(weights, scores, weights.full(), kept)
    masks = masks_of(weights, keep, sizes_of(model), how)
    apply(model, masks)
    return keep, masks


def some(weights: Structure, seed: int) -> Counts:
    rng = np.random.default_rng(seed)
    return np.array(
        [
            rng.integers(least, size + 1)
            for least, size in zip(weights.least, weights.sizes, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("name", "how"),
    PAIRS,
    ids=[f"{name}-{how.kind}{how.shape[0]}x{how.shape[1]}" for name, how in PAIRS],
)
def test_single_weights_keep_the_contract_of_units(name: str, how: Weight) -> None:
    of_kind = {
        "weight": single_weights_are_as_sparse_as_the_plan_says,
        "block": blocks_are_zero_or_whole_at_the_edge_too,
        "pattern": patterns_keep_the_best_n_of_every_m_inputs,
    }
    facts = [
        every_tensor_with_macs_is_a_group_or_skipped_for_a_reason,
        costs_of_the_whole_are_those_of_the_dense_model,
        costs_of_a_plan_are_those_of_the_masked_model,
        masks_only_shrink_along_a_schedule,
        after_units_are_removed_the_weights_of_what_is_left_count,
        of_kind[how.kind],
    ]
    hold(facts, name, how)


def every_tensor_with_macs_is_a_group_or_skipped_for_a_reason(name: str, how: Weight) -> None:
    weights, model = weights_of(name, how), model_of(name)
    parameters = dict(model.named_parameters())
    named = set(macs_by_tensor(structure_of(name), structure_of(name).full()))
    groups, skipped = (
        {group.name for group in weights.groups},
        {skipped.name for skipped in weights.skipped},
    )
    assert groups | skipped == named
    assert not groups & skipped
    assert (weights.layers, weights.prunable_layers) == (len(named), len(groups))
    assert {
        tensor for tensor in parameters if parameters[tensor].dim() > 1
    } == named  # no bias, no norm
    if how.kind != "pattern":
        assert not skipped
    for each in weights.skipped:
        assert parameters[each.name].shape[1] % how.shape[1]
        assert (
            each.reason
            == f"its {parameters[each.name].shape[1]} inputs are no multiple of {how.shape[1]}"
        )
    assert [group.start for group in weights.groups] == [0, *np.cumsum(weights.sizes)][
        : len(groups)
    ]
    assert not weights.table


def costs_of_the_whole_are_those_of_the_dense_model(name: str, how: Weight) -> None:
    weights, structure, model = weights_of(name, how), structure_of(name), model_of(name)
    dense = Cost(structure).macs(structure.sizes)
    assert Cost(weights).macs(weights.sizes) == dense
    assert Cost(weights).params(weights.sizes) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    names = [group.name for group in weights.groups]
    assert densities(model, names) == dict.fromkeys(names, 1.0)
    assert effective_macs(structure, structure.full(), densities(model, names)) == dense


def costs_of_a_plan_are_those_of_the_masked_model(name: str, how: Weight) -> None:
    for seed in SEEDS:
        _costs_of_a_plan(name, how, seed)


def _costs_of_a_plan(name: str, how: Weight, seed: int) -> None:
    weights, structure, model = weights_of(name, how), structure_of(name), model_of(name)
    kept = some(weights, seed)
    pruned(model, weights, how, kept)
    found = densities(model, [group.name for group in weights.groups])
    macs, parameters = macs_by_tensor(structure, structure.full()), dict(model.named_parameters())
    slack_macs, slack_params = 1.0, 1.0
    for group, count in zip(weights.groups, kept, strict=True):
        numel = parameters[group.name].numel()
        if how.kind == "block":  # blocks at the edge are smaller than the mean
            off = abs(found[group.name] - count / group.size)
            assert (
                off <= how.shape[0] * how.shape[1] * min(count, group.size - count) / numel + 1e-9
            ), (
                seed,
                group.name,
            )
        else:
            off = 0.0
        slack_macs += group.size + off * macs[group.name]
        slack_params += group.size + off * numel
    effective = effective_macs(structure, structure.full(), found)
    assert abs(Cost(weights).macs(kept) - effective) <= (
        slack_macs if how.kind != "weight" else 1.0
    ), seed
    nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in parameters.values())
    assert abs(Cost(weights).params(kept) - nonzero) <= (
        slack_params if how.kind != "weight" else 0
    ), seed


def single_weights_are_as_sparse_as_the_plan_says(name: str, how: Weight) -> None:
    for seed in SEEDS:
        weights, model = weights_of(name, how), model_of(name)
        before, kept = sizes_of(model_of(name)), some(weights, seed)
        _, masks = pruned(model, weights, how, kept)
        for group, count in zip(weights.groups, kept, strict=True):
            weight = dict(model.named_parameters())[group.name]
            assert int(torch.count_nonzero(weight)) == count, (seed, group.name)
            if count < group.size:
                gone, left = (
                    before[group.name][~masks[group.name]],
                    before[group.name][masks[group.name]],
                )
                assert gone.max() <= left.min(), (seed, group.name)
        cut = {
            group.name
            for group, count in zip(weights.groups, kept, strict=True)
            if count < group.size
        }
        assert set(masks) == cut, seed


def blocks_are_zero_or_whole_at_the_edge_too(name: str, how: Weight) -> None:
    shape = how.shape
    weights, model = weights_of(name, how), model_of(name)
    before, kept = sizes_of(model_of(name)), some(weights, 1)
    pruned(model, weights, how, kept)
    for group, count in zip(weights.groups, kept, strict=True):
        matrix = dict(model.named_parameters())[group.name].detach().flatten(1)
        was = before[group.name].flatten(1)
        blocks = [
            (slice(i, i + shape[0]), slice(j, j + shape[1]))
            for i in range(0, matrix.shape[0], shape[0])
            for j in range(0, matrix.shape[1], shape[1])
        ]
        assert len(blocks) == group.size
        here = [bool((matrix[block] != 0).all()) for block in blocks]
        assert all(
            bool((matrix[block] == 0).all()) != kept
            for block, kept in zip(blocks, here, strict=True)
        )
        assert sum(here) == count
        means = [float(was[block].double().mean()) for block in blocks]
        assert shares(before[group.name], how) == pytest.approx(means)
        gone = [mean for mean, kept in zip(means, here, strict=True) if not kept]
        assert (
            not gone
            or max(gone) <= min(mean for mean, kept in zip(means, here, strict=True) if kept) + 1e-9
        )


@pytest.mark.parametrize("shape", PATTERNS, ids=str)
def test_patterns_of_what_comes_in_sevens_fit_or_not(shape: tuple[int, int]) -> None:
    patterns_keep_the_best_n_of_every_m_inputs("sevens", Weight("pattern", shape))


def patterns_keep_the_best_n_of_every_m_inputs(name: str, how: Weight) -> None:
    n, m = how.shape
    model = Sevens() if name == "sevens" else model_of(name)
    structure = sevens() if name == "sevens" else structure_of(name)
    weights, before = weight_structure(structure, structure.full(), model, how), sizes_of(model)
    before = {key: value.clone() for key, value in before.items()}
    pruned(model, weights, how, np.zeros(len(weights.groups), dtype=np.int64))
    assert name != "sevens" or m != 7 or len(weights.groups) == 2
    for group in weights.groups:
        weight, was = dict(model.named_parameters())[group.name].detach(), before[group.name]
        for start in range(0, weight.shape[1], m):
            here = weight[:, start : start + m] != 0
            assert (here.sum(1) == n).all()
            best = was[:, start : start + m].sort(1, descending=True).values
            torch.testing.assert_close(
                weight[:, start : start + m].abs().sum(1), best[:, :n].sum(1)
            )


def test_a_pattern_that_is_kept_is_dense_and_others_are_not_touched() -> None:
    how, model = Weight("pattern", (2, 4)), model_of("encoder")
    weights = weights_of("encoder", how)
    kept = np.arange(len(weights.groups)) % 2
    _, masks = pruned(model, weights, how, kept)
    found = densities(model, [group.name for group in weights.groups])
    expected = {
        group.name: 1.0 if count else 0.5 for group, count in zip(weights.groups, kept, strict=True)
    }
    assert found == expected
    assert set(masks) == {name for name, share in expected.items() if share < 1.0}


def masks_only_shrink_along_a_schedule(name: str, how: Weight) -> None:
    rising = sorted(set(SCHEDULES) - RETURNING)
    for schedule in rising if name == "residual" else ["cubic"]:
        _masks_only_shrink(name, how, schedule)


def _masks_only_shrink(name: str, how: Weight, schedule: str) -> None:
    weights, model = weights_of(name, how), model_of(name)
    final, keep, before = some(weights, 2), weights.full(), zeros_of(model, [])
    for step in range(1, 5):
        kept = at_fraction(weights.sizes, final, SCHEDULES[schedule](step / 4))
        keep = choose(weights, unit_scores(weights, sizes_of(model), how), keep, kept)
        masks = masks_of(weights, keep, sizes_of(model), how)
        apply(model, masks)
        assert (weights.counts(keep) == kept).all(), schedule
        assert set(before) <= set(masks), schedule
        assert all(
            (mask <= before[name]).all() for name, mask in masks.items() if name in before
        ), schedule
        before = masks
    assert (weights.counts(keep) == final).all(), schedule
    assert all(torch.equal(mask, masks[name]) for name, mask in zeros_of(model, masks).items()), (
        schedule
    )


def after_units_are_removed_the_weights_of_what_is_left_count(name: str, how: Weight) -> None:
    structure, dense = structure_of(name), model_of(name)
    scores = np.random.default_rng(0).random(structure.n_units)
    alive = choose(structure, scores, structure.full(), np.maximum(1, structure.sizes // 2))
    model = remove(dense, structure, alive)
    weights = weight_structure(structure, alive, model, how)
    macs = Cost(structure).macs(structure.counts(alive))
    assert Cost(weights).macs(weights.sizes) == macs
    assert Cost(weights).params(weights.sizes) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert effective_macs(structure, alive, {}) == macs
    kept = some(weights, 3)
    pruned(model, weights, how, kept)
    model(torch.zeros(2, 1, 8, 8))
    if how.kind != "block":
        found = effective_macs(
            structure, alive, densities(model, [group.name for group in weights.groups])
        )
        assert abs(found - Cost(weights).macs(kept)) <= 1 + len(weights.groups)
