"""Counts and choices of units."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Plan, Rule, Thresholds, Timing
from lightning_modules.pruning.structure import Group, Kind, Structure
from lightning_modules.pruning.thresholds import choose, counts, normalised, quantiles, rounded


def structure(*sizes: int, kinds: tuple[Kind, ...] = ()) -> Structure:
    starts, kinds = np.cumsum([0, *sizes]), kinds or ("channel",) * len(sizes)
    groups = tuple(
        Group(f"g{i}", int(starts[i]), n, (), True, kinds[i]) for i, n in enumerate(sizes)
    )
    return Structure(groups, {}, (), (), (), 1, 1)


def same(model: Structure, threshold: float) -> dict[str, float]:
    return {group.name: threshold for group in model.groups}


SCORES = np.array([1.0, 2.0, 3.0, 6.0])


@pytest.mark.parametrize(
    ("rule", "threshold", "kept"),
    [
        ("absolute", 2.0, 3),
        ("mean", 1.0, 2),
        ("median", 1.0, 2),
        ("quantile", 0.5, 2),
        ("quantile", 0.0, 4),
    ],
)
def test_keep_where_score_is_at_least_the_threshold(rule: str, threshold: float, kept: int) -> None:
    model = structure(4)
    assert counts(model, SCORES, model.full(), {"g0": threshold}, rule)[0] == kept  # type: ignore[arg-type]


def test_quantiles_count_against_the_dense_group() -> None:
    model = structure(4)
    alive = np.array([False, True, True, True])
    assert counts(model, SCORES, alive, {"g0": 0.5}, "quantile")[0] == 2
    assert counts(model, SCORES, alive, {"g0": 0.1}, "quantile")[0] == 3


def test_emptied_unknown_and_unscored_groups_are_named() -> None:
    model = structure(4, 2)
    scores = np.array([1.0, 2.0, 3.0, 6.0, 1.0, 2.0])
    with pytest.raises(PlanError, match=r"threshold 9 \(absolute\) empties 'g0' of 4 units"):
        counts(model, scores, model.full(), {"g0": 9.0}, "absolute")
    with pytest.raises(PlanError, match=r"threshold 2 \(quantile\) empties 'g1' of 2 units"):
        counts(model, scores, model.full(), {"g1": 2.0}, "quantile")
    with pytest.raises(
        PlanError, match=r"unknown groups \['layer5'\]; the model has \['g0', 'g1'\]"
    ):
        counts(model, scores, model.full(), {"layer5": 0.1}, "mean")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_its_group_unless_its_unit_is_gone(wrong: float) -> None:
    model, scores = structure(4, 2), np.array([1.0, 2.0, 3.0, 6.0, 1.0, wrong])
    with pytest.raises(PlanError, match="scores must be finite; group 'g1' has 1"):
        counts(
            model, scores, model.full(), {"g0": 9.0}, "absolute"
        )  # before anything is said about the plan
    alive = np.isfinite(scores)
    assert counts(model, scores, alive, {}, "mean").tolist() == [4, 1]


def test_groups_that_are_not_named_keep_what_they_have() -> None:
    model = structure(4, 2)
    alive = np.array([True, False, True, True, True, True])
    assert counts(model, -np.arange(6.0), alive, {}, "mean").tolist() == [3, 2]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.data())
def test_quantiles_say_counts_exactly(sizes: list[int], data: st.DataObject) -> None:
    model = structure(*sizes)
    kept = np.array([data.draw(st.integers(1, size)) for size in sizes])
    scores = np.arange(model.n_units, dtype=float)
    assert (counts(model, scores, model.full(), quantiles(model, kept), "quantile") == kept).all()


POOLS = st.lists(st.integers(1, 12), min_size=2, max_size=5)


@given(POOLS, st.floats(0, 1), st.integers(0, 99), st.integers(1, 4))
def test_a_ranking_over_groups_removes_what_was_asked_and_leaves_each_its_best(
    sizes: list[int], threshold: float, seed: int, values: int
) -> None:
    model = structure(*sizes)
    scores = (
        np.random.default_rng(seed).integers(-values, values + 1, model.n_units).astype(float)
    )  # with ties
    kept = counts(
        model, scores, model.full(), same(model, threshold), "quantile", [range(len(sizes))]
    )
    wanted = model.n_units - round(threshold * model.n_units)
    assert kept.sum() == max(wanted, len(sizes))
    keep = choose(model, scores, model.full(), kept)
    best = np.zeros_like(keep)
    for group in model.groups:
        best[group.start + int(np.argmax(scores[group.units]))] = True
    assert keep[best].all()
    if (keep & ~best).any() and not keep.all():
        assert scores[keep & ~best].min() >= scores[~keep].max()


@given(POOLS, st.floats(0, 1), st.integers(0, 99))
def test_pools_do_not_touch_one_another(sizes: list[int], threshold: float, seed: int) -> None:
    model, rest = structure(3, *sizes), range(1, len(sizes) + 1)
    scores = np.random.default_rng(seed).random(model.n_units)
    alone = structure(*sizes)
    expected = counts(
        alone, scores[3:], alone.full(), same(alone, threshold), "quantile", [range(len(sizes))]
    )
    found = counts(
        model, scores, model.full(), {**same(model, threshold), "g0": 0.34}, "quantile", [[0], rest]
    )
    assert found.tolist() == [2, *expected]


@pytest.mark.parametrize(("rule", "threshold"), [("mean", 1.0), ("median", 1.0), ("absolute", 3.0)])
def test_multiples_are_of_the_pool_and_each_group_keeps_its_best(
    rule: Rule, threshold: float
) -> None:
    model = structure(3, 2)
    scores = np.array([4.0, 5.0, 9.0, 1.0, 1.0])  # mean and median 4
    together = counts(model, scores, model.full(), same(model, threshold), rule, [[0, 1]])
    assert together.tolist() == [3, 1]
    if rule != "absolute":
        assert counts(model, scores, model.full(), same(model, threshold), rule).tolist() == [
            1 if rule == "mean" else 2,
            2,
        ]


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_a_higher_multiple_never_keeps_more_where_scores_are_negative(rule: Rule) -> None:
    model, scores = structure(5, 1), np.array([-6.0, -2.0, -1.0, 1.0, 2.0, -3.0])
    kept = [
        int(counts(model, scores, model.full(), {"g0": level}, rule)[0])
        for level in (0.0, 0.1, 0.5, 0.8)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 5
    assert kept[1] == 2


def test_groups_compared_with_one_another_share_one_threshold() -> None:
    model = structure(4, 2, 3)
    with pytest.raises(
        PlanError, match=r"'g0' and 1 others have \[0.25, 0.5\]; give them the same"
    ):
        counts(model, np.ones(9), model.full(), {"g0": 0.5, "g1": 0.25}, "quantile", [[0, 1], [2]])
    assert (
        counts(model, np.ones(9), model.full(), {"g0": 0.5, "g1": 0.5}, "quantile", [[0, 1], [2]])[
            2
        ]
        == 3
    )


def test_a_block_or_a_pattern_may_go_altogether() -> None:
    kinds: tuple[Kind, ...] = ("block", "pattern")
    rules: tuple[Rule, ...] = ("quantile", "mean", "median", "absolute")
    for kind, rule, score in product(kinds, rules, (-1.0, 0.0, 2.0)):
        model = structure(2, 1, kinds=("channel", kind))
        level = 1.0 if rule == "quantile" else float("inf")
        scores, full, gone = (
            np.array([1.0, 1.0, score]),
            model.full(),
            np.array([True, True, False]),
        )
        all_of_it, none_of_it, gone_before = (
            counts(model, scores, alive, {"g1": threshold}, rule).tolist()
            for alive, threshold in ((full, level), (full, 0.0), (gone, level))
        )
        assert (all_of_it, none_of_it, gone_before) == ([2, 0], [2, 1], [2, 0]), (kind, rule, score)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 16), st.data())
def test_rounding_gives_multiples_or_whole_groups_and_removes_no_more(
    sizes: list[int], multiple: int, data: st.DataObject
) -> None:
    model = structure(*sizes)
    kept = np.array([data.draw(st.integers(1, size)) for size in sizes])
    found = rounded(model, kept, multiple)
    assert ((found % multiple == 0) | (found == model.sizes)).all()
    assert (found >= kept).all()
    assert (found - kept < multiple).all()
    assert (found <= model.sizes).all()


def test_a_dropped_block_is_not_rounded_back() -> None:
    model = structure(4, 1, kinds=("channel", "block"))
    assert rounded(model, np.array([1, 0]), 8).tolist() == [4, 0]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 99), st.floats(0.1, 100)
)
def test_normalised_scores_have_the_mean_magnitude_one_and_the_same_order(
    sizes: list[int], seed: int, scale: float
) -> None:
    model, rng = structure(*sizes), np.random.default_rng(seed)
    scores, alive = scale * rng.normal(size=model.n_units), rng.random(model.n_units) < 0.7
    found = normalised(model, scores, alive)
    for group in model.groups:
        living = found[group.units][alive[group.units]]
        if len(living):
            assert np.abs(living).mean() == pytest.approx(1.0)
            assert (np.argsort(living) == np.argsort(scores[group.units][alive[group.units]])).all()
    assert (np.sign(found) == np.sign(scores)).all()


def test_normalised_puts_groups_of_negative_scores_on_the_scale_of_the_others() -> None:
    model = structure(2, 2, 2)
    scores = np.array([1.0, 3.0, -100.0, -300.0, 0.0, 0.0])
    assert normalised(model, scores, model.full()).tolist() == [0.5, 1.5, -0.5, -1.5, 0.0, 0.0]


def test_the_highest_scores_stay_and_only_the_living_are_chosen() -> None:
    model = structure(4, 3)
    scores = np.array([4.0, 9.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    alive = np.array([True, False, True, True, True, True, True])
    keep = choose(model, scores, alive, np.array([2, 2]))
    assert keep.tolist() == [True, False, False, True, True, True, False]


def test_a_plan_survives_json_and_refuses_nonsense() -> None:
    asked = (Thresholds({"g0": 0.5}, "quantile"), Thresholds({"w": 1.5}, "mean"))
    plan = Plan(
        "l2",
        {"g0": 3},
        {"w": 0.25},
        Timing("cyclic", 3, 2, 0.1, 0.9),
        activation=0.5,
        export="int8",
        parent=3,
        seed=7,
        asked=asked,
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(PlanError, match="fields of Plan"):
        Plan.from_json({"method": "l2", "asked": [], "timing": {}, "colour": 1})
    with pytest.raises(PlanError, match="fields of Plan"):
        Plan.from_json({"asked": []})
