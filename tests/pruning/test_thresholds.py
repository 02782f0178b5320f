"""Counts and choices of units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.schedules import SCHEDULES
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import at_step, choose, counts, quantiles


def structure(*sizes: int) -> Structure:
    starts = np.cumsum([0, *sizes])
    groups = tuple(Group(f"g{i}", int(starts[i]), size, (), True) for i, size in enumerate(sizes))
    return Structure(groups, {}, (), (), (), 1, 1)


SCORES = np.array([1.0, 2.0, 3.0, 6.0])


@pytest.mark.parametrize(
    ("rule", "threshold", "kept"),
    [("absolute", 2.0, 3), ("mean", 1.0, 2), ("median", 1.0, 2), ("quantile", 0.5, 2), ("quantile", 0.0, 4)],
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
    scores = np.array([1.0, 2.0, 3.0, 6.0, 1.0, np.nan])
    with pytest.raises(PlanError, match=r"threshold 9 \(absolute\) empties 'g0' of 4 units"):
        counts(model, scores, model.full(), {"g0": 9.0}, "absolute")
    with pytest.raises(PlanError, match=r"unknown groups \['layer5'\]; the model has \['g0', 'g1'\]"):
        counts(model, scores, model.full(), {"layer5": 0.1}, "mean")
    with pytest.raises(PlanError, match="group 'g1' has 1"):
        counts(model, scores, model.full(), {}, "mean")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.data())
def test_quantiles_say_counts_exactly(sizes: list[int], data: st.DataObject) -> None:
    model = structure(*sizes)
    kept = np.array([data.draw(st.integers(1, size)) for size in sizes])
    scores = np.arange(model.n_units, dtype=float)
    assert (counts(model, scores, model.full(), quantiles(model, kept), "quantile") == kept).all()


@given(
    before=st.integers(1, 200),
    fraction=st.floats(0, 1),
    steps=st.integers(1, 9),
    name=st.sampled_from(sorted(SCHEDULES)),
)
def test_counts_follow_the_schedule_to_the_unit(before: int, fraction: float, steps: int, name: str) -> None:
    final = max(1, round(before * (1 - fraction)))
    path = [int(at_step(np.array([before]), np.array([final]), name, step, steps)[0]) for step in range(1, steps + 1)]
    assert path[-1] == final
    assert path == sorted(path, reverse=True)
    for step, kept in enumerate(path, 1):
        assert before - kept == int(np.rint((before - final) * SCHEDULES[name](step / steps)))


def test_the_highest_scores_stay_and_only_the_living_are_chosen() -> None:
    model = structure(4, 3)
    scores = np.array([4.0, 9.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    alive = np.array([True, False, True, True, True, True, True])
    keep = choose(model, scores, alive, np.array([2, 2]))
    assert keep.tolist() == [True, False, False, True, True, True, False]


def test_a_plan_survives_json_and_refuses_nonsense() -> None:
    plan = Plan({"g0": 0.5}, "quantile", {"_target_": "x"}, parent=3)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(PlanError, match=r"plan.schedule must be one of .*; got 'sudden'"):
        Plan({}, "quantile", {}, schedule="sudden")
    with pytest.raises(PlanError, match="fields of Plan"):
        Plan.from_json({"thresholds": {}, "colour": 1})
