"""What every schedule must be: a rising function from 0 at the start to 1 at the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.pruning.schedules import SCHEDULES


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_ends(name: str) -> None:
    assert SCHEDULES[name](0.0) == 0.0
    assert SCHEDULES[name](1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_never_falls_and_stays_in_the_unit_interval(name: str, a: float, b: float) -> None:
    low, high = SCHEDULES[name](min(a, b)), SCHEDULES[name](max(a, b))
    assert -1e-12 <= low <= high + 1e-12 <= 1.0 + 2e-12
