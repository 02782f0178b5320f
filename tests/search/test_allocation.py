"""FLOPs targets shared out among groups."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.structure import Counts
from orchestrator.search.space.allocation import (
    Sensitivity,
    Shares,
    allocate,
    between_allocations,
    scaled,
)
from tests.structures import small_resnet


@cache
def cost() -> Cost:
    return Cost(small_resnet())


def sizes() -> Counts:
    return small_resnet().sizes


def dense() -> int:
    return cost().macs(sizes())


def flat() -> Sensitivity:
    return Sensitivity(np.ones(len(sizes())))


@settings(max_examples=40)
@given(
    target=st.floats(0.03, 0.95),
    blend=st.floats(0, 1),
    offsets=st.lists(st.floats(-1, 1), min_size=6, max_size=6),
)
def test_the_target_is_met_and_no_group_is_empty(
    target: float, blend: float, offsets: list[float]
) -> None:
    kept = allocate(
        sizes(), cost().macs, int(target * dense()), Shares(blend, flat(), np.array(offsets))
    )
    assert cost().macs(kept) <= target * dense()
    assert (kept >= 1).all()
    assert (kept <= sizes()).all()


def test_equal_sensitivities_share_like_uniform() -> None:
    target = dense() // 3
    assert (
        abs(
            allocate(sizes(), cost().macs, target, Shares(1.0, flat()))
            - allocate(sizes(), cost().macs, target, Shares())
        ).max()
        <= 1
    )


def test_a_sensitive_group_keeps_more() -> None:
    loss = np.ones(len(sizes()))
    loss[2] = 100.0
    kept = allocate(sizes(), cost().macs, dense() // 3, Shares(1.0, Sensitivity(loss)))
    shares = kept / sizes()
    assert shares[2] == shares.max()
    assert shares[2] > 1.5 * np.delete(shares, 2).max()


def test_the_loss_of_a_group_grows_with_the_square_of_its_ratio() -> None:
    curve = Sensitivity(np.array([0.5**2, 2.0 * 0.5**2]))
    assert curve.ratios_at(0.4**2) == pytest.approx([0.4, 0.4 / 2**0.5], rel=1e-6)


def test_uniform_chains_are_nested() -> None:
    before = sizes()
    for target in np.geomspace(0.8, 0.03, 12):
        kept = scaled(sizes(), cost().macs, int(target * dense()), np.ones(len(sizes())))
        assert (kept <= before).all()
        before = kept


def test_the_way_from_one_allocation_to_the_next_goes_through_both_and_is_nested() -> None:
    first = sizes() // 2
    second = first.copy()
    second[0] = 1
    allocations = np.array([first, second])
    for allocation in allocations:
        target = cost().macs(allocation)
        assert (between_allocations(sizes(), cost().macs, target, allocations) == allocation).all()
    before = sizes()
    for target in np.geomspace(0.95, 0.03, 20) * dense():
        kept = between_allocations(sizes(), cost().macs, int(target), allocations)
        assert cost().macs(kept) <= target
        assert (kept >= 1).all()
        assert (kept <= before).all()
        before = kept


def test_without_an_allocation_on_the_way_all_groups_shrink_alike() -> None:
    none = np.zeros((0, len(sizes())), dtype=np.int64)
    for target in (dense() // 2, dense() // 10):
        kept = between_allocations(sizes(), cost().macs, target, none)
        even = scaled(sizes(), cost().macs, target, np.ones(len(sizes())))
        assert (kept == even).all()
