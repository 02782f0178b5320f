"""What every schedule must be: a pure function from 0 at the start to 1 at the end, and whole units
on the way.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Timing
from lightning_modules.pruning.schedules import RETURNING, SCHEDULES
from lightning_modules.pruning.thresholds import at_fraction

RISING = sorted(set(SCHEDULES) - RETURNING)


def test_each_begins_at_zero_and_ends_at_one() -> None:
    ends = {name: (schedule(0.0), schedule(1.0)) for name, schedule in SCHEDULES.items()}
    assert ends == dict.fromkeys(SCHEDULES, (0.0, 1.0))


@settings(max_examples=400)
@given(name=st.sampled_from(RISING), a=st.floats(0, 1), b=st.floats(0, 1))
def test_rising_ones_never_fall_and_stay_in_the_unit_interval(
    name: str, a: float, b: float
) -> None:
    low, high = SCHEDULES[name](min(a, b)), SCHEDULES[name](max(a, b))
    assert -1e-12 <= low <= high + 1e-12 <= 1.0 + 2e-12


def test_returning_ones_fall_somewhere_and_are_never_below_zero() -> None:
    for name, steps in product(sorted(RETURNING), range(4, 13)):
        values = [SCHEDULES[name](step / steps) for step in range(steps + 1)]
        assert any(after < before for before, after in pairwise(values)), (name, steps)
        assert min(values) >= 0.0, (name, steps)


@settings(max_examples=400)
@given(name=st.sampled_from(sorted(SCHEDULES)), progress=st.floats(0, 1))
def test_the_same_progress_gives_the_same_fraction(name: str, progress: float) -> None:
    assert SCHEDULES[name](progress) == SCHEDULES[name](progress)


def test_known_values() -> None:
    half = {name: schedule(0.5) for name, schedule in SCHEDULES.items()}
    assert half == pytest.approx(
        {
            "one_shot": 1.0,
            "linear": 0.5,
            "cubic": 0.875,
            "exponential": 0.9 / 0.99,
            "cosine": 0.5,
            "cyclic": 1 / 3 + 2 / 3 * 0.875,
            "recovering": 1.2,
        }
    )


@given(
    before=st.integers(0, 300),
    data=st.data(),
    steps=st.integers(1, 12),
    name=st.sampled_from(sorted(SCHEDULES)),
)
def test_counts_follow_the_schedule_to_the_unit(
    before: int, data: st.DataObject, steps: int, name: str
) -> None:
    final = data.draw(st.integers(0, before))
    path = [
        int(at_fraction(np.array([before]), np.array([final]), SCHEDULES[name](step / steps))[0])
        for step in range(1, steps + 1)
    ]
    assert path[-1] == final
    for step, kept in enumerate(path, 1):
        wanted = before - int(np.rint((before - final) * SCHEDULES[name](step / steps)))
        assert kept == max(
            wanted, min(final, 1)
        )  # a group that keeps a unit in the end keeps one on the way
    if name not in RETURNING:
        assert path == sorted(path, reverse=True)


def test_beyond_the_end_is_more_removed_but_never_the_last_unit() -> None:
    before, final = np.array([10, 10, 1, 1]), np.array([5, 1, 1, 0])
    assert at_fraction(before, final, 1.2).tolist() == [4, 1, 1, 0]


timings = st.tuples(
    st.integers(1, 8),
    st.integers(1, 5),
    st.floats(0, 1),
    st.floats(0, 1),
).filter(lambda t: t[2] < t[3])


@given(timings)
def test_moments_lie_between_start_and_end_in_order_with_a_unit_after_the_last(
    drawn: tuple[int, int, float, float],
) -> None:
    steps, units, start, end = drawn
    timing = Timing("linear", steps, units, start, end)
    moments = timing.moments()
    assert len(moments) == steps
    assert moments == sorted(moments)
    assert moments[0] >= 0
    assert moments[-1] <= timing.total - 1
    assert moments[-1] <= end * timing.total + 1e-6
    assert start * timing.total - 1 <= moments[0] <= start * timing.total + 1e-6


@given(st.integers(1, 12), st.integers(1, 12))
def test_from_start_to_end_each_step_is_followed_by_the_same_units(steps: int, units: int) -> None:
    timing = Timing("cubic", steps, units)
    assert timing.moments() == [step * units for step in range(steps)]
    assert timing.total == steps * units


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "sudden"}, r"plan.schedule must be one of .*; got 'sudden'"),
        ({"steps": 0}, "plan.steps and plan.rounds must be at least 1; got 0 and 1"),
        ({"rounds": -1}, "plan.steps and plan.rounds must be at least 1; got 1 and -1"),
        ({"start": 0.5, "end": 0.5}, r"0 <= start < end <= 1; got 0.5 and 0.5"),
        ({"end": 1.5}, r"0 <= start < end <= 1; got 0 and 1.5"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Timing(**wrong)  # type: ignore[arg-type]
