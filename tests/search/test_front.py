"""Dominance and volume on points made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orchestrator.search.front import hypervolume, non_dominated, spread_out, volume


def test_dominated_points_leave() -> None:
    points = np.array([[0.9, 10.0], [0.8, 5.0], [0.8, 6.0], [0.7, 5.0], [0.95, 20.0]])
    assert non_dominated(points).tolist() == [True, True, False, False, True]


def test_of_equal_points_one_stays() -> None:
    points = np.array([[0.9, 10.0], [0.9, 10.0]])
    assert non_dominated(points).sum() == 1
    assert non_dominated(points, tolerance=0.01).tolist() == [True, False]


def test_a_tolerance_keeps_what_cannot_be_told_apart() -> None:
    points = np.array([[0.990, 10.0], [0.994, 5.0], [0.980, 8.0]])
    assert non_dominated(points).tolist() == [False, True, False]
    assert non_dominated(points, tolerance=0.005).tolist() == [True, True, False]


def test_three_objectives() -> None:
    points = np.array([[0.9, 10.0, 1.0], [0.9, 10.0, 2.0], [0.8, 11.0, 0.5]])
    assert non_dominated(points).tolist() == [True, False, True]


@given(
    points=arrays(
        float,
        st.tuples(st.integers(1, 12), st.integers(2, 4)),
        elements=st.integers(0, 4).map(float),
    )
)
def test_whoever_leaves_is_dominated_and_whoever_stays_is_not(points: np.ndarray) -> None:
    losses = points * np.array([-1.0] + [1.0] * (points.shape[1] - 1))
    worse = (losses[:, None] <= losses[None]).all(2) & (losses[:, None] < losses[None]).any(2)
    kept = non_dominated(points)
    assert not (worse.any(0) & kept).any()
    left = np.flatnonzero(~kept)
    assert all(worse[kept, i].any() or (losses[kept] == losses[i]).all(1).any() for i in left)


@given(
    points=arrays(
        float, st.tuples(st.integers(1, 8), st.just(3)), elements=st.floats(0.0, 1.0, width=16)
    ),
    more=st.lists(st.floats(0.0, 1.0, width=16), min_size=3, max_size=3),
)
def test_the_volume_grows_with_points_and_is_that_of_the_front(
    points: np.ndarray, more: list[float]
) -> None:
    corner = np.array([0.25, 0.75, 1.0])
    whole = volume(points, corner)
    assert 0.0 <= whole <= 0.75 * 0.75 + 1e-9
    assert volume(np.vstack([points, more]), corner) >= whole - 1e-9
    assert volume(points[non_dominated(points)], corner) == pytest.approx(whole)


def test_no_points_have_no_front() -> None:
    assert non_dominated(np.zeros((0, 2))).tolist() == []


def test_hypervolume_is_the_area_over_log_flops() -> None:
    assert hypervolume([0.9], [1 / 32], 0.5, 1 / 32) == pytest.approx(0.4)
    assert hypervolume([0.9], [math.sqrt(1 / 32)], 0.5, 1 / 32) == pytest.approx(0.2)
    assert hypervolume([0.9, 0.7], [math.sqrt(1 / 32), 1 / 32], 0.5, 1 / 32) == pytest.approx(0.3)
    assert hypervolume([0.9], [1 / 64], 0.5, 1 / 32) == pytest.approx(0.4)  # clipped
    assert hypervolume([0.4], [0.1], 0.5, 1 / 32) == 0.0


def test_spread_out_repeats_nothing_and_leaves_no_stretch_out() -> None:
    flops = [1.0, 2.0, 2.1, 2.2, 50.0, 100.0]
    chosen = spread_out(flops, 4)
    assert chosen[0] == 0
    assert chosen[-1] == 5
    assert len(set(chosen)) == 4
    assert spread_out(flops, 9) == list(range(6))


def test_of_one_stretch_the_lowest_loss_is_chosen() -> None:
    flops = [1.0, 1.1, 10.0, 11.0, 100.0, 90.0]
    assert spread_out(flops, 3, [0.3, 0.2, 0.1, 0.4, 0.9, 0.8]) == [1, 2, 5]
