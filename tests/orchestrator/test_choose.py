"""Which model of a front is taken."""

from __future__ import annotations

import pytest

from lightning_modules.errors import ConfigError
from orchestrator.results.choose import Front, knee, max_quality, smallest
from orchestrator.results.rows import ConfirmedRow


def row(trial: int | None, flops: float, mean: float, std: float = 0.0) -> ConfirmedRow:
    costs = {"flops": flops, "latency_ms": flops / 10}
    origin = "front" if trial is not None else "dense"
    ratios = {"flops": flops / 1000}
    return ConfirmedRow(origin, trial, mean, std, seeds=2, costs=costs, ratios=ratios)


ROWS = [row(0, 500, 0.95, 0.03), row(1, 300, 0.94), row(2, 100, 0.93), row(3, 10, 0.6)]
FRONT = Front(ROWS, row(None, 1000, 0.95), "accuracy", 1.0)


def test_the_best_within_limits_counts_mean_less_spread() -> None:
    assert max_quality(FRONT).trial == 1
    assert max_quality(FRONT, max_flops_ratio=0.2, max_latency_ms=None).trial == 2
    assert max_quality(FRONT, max_latency_ms=5.0).trial == 3


def test_a_limit_that_no_model_keeps_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"nearest is trial 3 with 0\.01"):
        max_quality(FRONT, max_flops_ratio=0.001)
    with pytest.raises(ConfigError, match="must limit a cost; they are flops"):
        max_quality(FRONT, max_flop=3.0)
    with pytest.raises(ConfigError, match="needs models with that cost; the study has none"):
        max_quality(FRONT, max_size_mb=3.0)


def test_a_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"select.max_flops_ratio must be a number; got 'half'"):
        max_quality(FRONT, max_flops_ratio="half")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"select.max_drop must be a number; got 'little'"):
        smallest(FRONT, max_drop="little")  # type: ignore[arg-type]


def test_the_smallest_is_about_as_good_as_the_dense_model() -> None:
    assert smallest(FRONT, max_drop=0.02).trial == 2
    assert smallest(FRONT, max_drop=0.01).trial == 1
    with pytest.raises(ConfigError, match=r"nearest is trial 1, whose accuracy is 0\.01 below"):
        smallest(FRONT, max_drop=0.001)


def test_a_quality_to_be_small_is_chosen_the_other_way() -> None:
    rows = [row(0, 500, 1.0), row(1, 300, 1.1), row(2, 100, 2.0)]
    front = Front(rows, row(None, 1000, 1.0), "mae", -1.0)
    assert max_quality(front).trial == 0
    assert smallest(front, max_drop=0.2).trial == 1


def test_the_knee_is_where_the_front_bends() -> None:
    assert knee(FRONT).trial == 2
    assert knee(Front(ROWS[:2], FRONT.dense, "accuracy", 1.0)).trial == 1
