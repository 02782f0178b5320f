"""What every rule that moves a mask must do, and which weights each of them chooses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.regrowth import RandomRegrowth, Regrowth, RigL, Surgery
from lightning_modules.recipe import Recipe

SHAPES = [(7,), (6, 5), (4, 3, 3, 3)]


def rules() -> dict[str, Regrowth]:
    """Those of the YAMLs in conf/method."""
    found = {}
    for path in sorted((Path(__file__).parents[2] / "conf" / "method").glob("*.yaml")):
        data = yaml.safe_load(path.read_text())
        if recipe := data.get("method", data).get("regrowth"):
            found[path.stem] = Recipe.from_json(recipe).build()
    return found


RULES = rules()
exchanging = pytest.mark.parametrize("rule", [RigL(), RandomRegrowth()], ids=["rigl", "set"])


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def drawn(
    shape: tuple[int, ...], seed: int, share: float, dense: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (pruned ones zero, unless `dense`), their mask and a gradient."""
    torch.manual_seed(seed)
    mask = torch.rand(shape) < share
    weight = torch.randn(shape) if dense else torch.randn(shape) * mask
    return weight, mask, torch.randn(shape)


def test_all_rules_have_a_configuration() -> None:
    assert {type(rule) for rule in RULES.values()} == {RigL, RandomRegrowth, Surgery}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_move_is_a_new_mask_from_untouched_tensors(name: str, shape: tuple[int, ...]) -> None:
    rule = RULES[name]
    weight, mask, gradient = drawn(shape, 1, 0.5, rule.dense)
    before = [tensor.clone() for tensor in (weight, mask, gradient)]
    first, second = (
        rule(weight, mask, gradient, int(mask.sum()), 0.1, generator()) for _ in range(2)
    )
    assert (first.shape, first.dtype) == (mask.shape, torch.bool)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, mask, gradient), strict=True))


@pytest.mark.parametrize("name", RULES)
def test_the_mask_rests_after_the_end(name: str) -> None:
    rule = RULES[name]
    weight, mask, gradient = drawn((6, 5), 2, 0.5, rule.dense)
    for progress in (0.7501, 0.9, 1.0):
        assert torch.equal(
            rule(weight, mask, gradient, int(mask.sum()), progress, generator()), mask
        )


@exchanging
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    progress=st.floats(0, 1),
)
def test_exchanges_keep_the_count_and_what_was_dropped_stays_away(
    rule: Regrowth, shape: tuple[int, ...], seed: int, share: float, progress: float
) -> None:
    weight, mask, gradient = drawn(shape, seed, share, dense=False)
    kept = int(mask.sum())
    moved = rule(weight, mask, gradient, kept, progress, generator())
    assert int(moved.sum()) == kept
    wanted = round(0.15 * (1 + math.cos(math.pi * min(1.0, progress / 0.75))) * kept)
    assert int((mask & ~moved).sum()) == min(wanted, mask.numel() - kept)
    dropped, stayed = weight[mask & ~moved].abs(), weight[mask & moved].abs()
    assert (
        not len(dropped) or not len(stayed) or dropped.max() <= stayed.min()
    )  # the smallest of what was kept go
    assert (weight[moved & ~mask] == 0).all()  # only from among the pruned, so what comes is zero


def test_rigl_drops_the_smallest_and_grows_the_largest_gradients() -> None:
    weight = torch.tensor([[5.0, -0.1, 2.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    mask = weight != 0
    gradient = torch.tensor([[0.0, 100.0, 0.0, 0.0], [1.0, -9.0, 3.0, -2.0]])
    rule = RigL(fraction=0.5)
    assert rule(weight, mask, gradient, 4, 0.0, generator()).tolist() == [
        [True, False, False, True],  # -0.1 and 2 go, however large the gradient of -0.1 is
        [False, True, True, False],
    ]
    half = rule(weight, mask, gradient, 4, 0.375, generator())  # half way to the end: half as many
    assert half.tolist() == [[True, False, True, True], [False, True, False, False]]


def test_random_regrowth_follows_its_seed_and_reaches_every_pruned_weight() -> None:
    weight, mask, gradient = drawn((6, 5), 3, 0.5, dense=False)
    moves = [
        RandomRegrowth()(weight, mask, gradient, int(mask.sum()), 0.0, generator(seed))
        for seed in range(60)
    ]
    assert torch.equal(
        moves[0], RandomRegrowth()(weight, mask, -gradient, int(mask.sum()), 0.0, generator(0))
    )
    assert torch.stack(moves).any(0)[~mask].all()


def test_surgery_changes_nothing_within_the_band() -> None:
    size = torch.tensor([1.0, 8.9, 9.1, 9.9, 10.0, 10.9, 11.0, 20.0])
    sign = torch.tensor([1, -1, 1, -1, 1, -1, 1, -1])
    rule = Surgery(margin=0.1)  # four are kept from 10 on: 9 and 11 are the thresholds
    nothing, everything = torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    came = rule(size * sign, nothing, size, 4, 0.1, generator())
    assert came.tolist() == [False] * 6 + [True] * 2
    left = rule(size * sign, everything, size, 4, 0.1, generator())
    assert left.tolist() == [False] * 2 + [True] * 6


@given(seed=st.integers(0, 999), kept=st.integers(0, 30))
def test_surgery_without_a_margin_keeps_the_largest_the_plan_asks_for(seed: int, kept: int) -> None:
    weight, mask, gradient = drawn((6, 5), seed, 0.5, dense=True)
    moved = Surgery(margin=0.0)(weight, mask, gradient, kept, 0.0, generator())
    assert int(moved.sum()) == max(1, kept)
    assert (
        weight.abs()[moved].min() >= weight.abs()[~moved].max() if int(moved.sum()) < 30 else True
    )


def test_surgery_does_not_drift_from_the_plan_however_often_it_moves() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 50)
    mask = weight.abs() >= weight.abs().flatten().kthvalue(1601).values
    for _ in range(200):
        weight += 0.2 * torch.randn(40, 50) - 0.02 * weight
        mask = Surgery(margin=0.3)(weight, mask, weight, 400, 0.0, generator())
    size, kept = weight.abs(), int(mask.sum())
    threshold = size.flatten().kthvalue(1601).values
    assert int((size >= 1.3 * threshold).sum()) <= kept <= int((size >= 0.7 * threshold).sum())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: RigL(every=0),
            r"every >= 1, 0 < fraction <= 1 and 0 < end <= 1; got 0, 0.3 and 0.75",
        ),
        (lambda: RandomRegrowth(fraction=1.5), r"got 4, 1.5 and 0.75"),
        (
            lambda: Surgery(margin=1.0),
            r"every >= 1, 0 <= margin < 1 and 0 < end <= 1; got 4, 1.0 and 0.75",
        ),
        (lambda: Surgery(end=0.0), r"got 4, 0.1 and 0.0"),
    ],
)
def test_nonsense_is_refused(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]
