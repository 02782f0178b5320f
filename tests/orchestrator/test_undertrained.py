"""A dense model that is worse than its pruned children is told."""

from __future__ import annotations

import pytest

from orchestrator.results.rows import ConfirmedRow, Rows
from orchestrator.results.undertrained import better_than_dense, late_gain, undertraining

SUMMARY = {"smallest": {"tolerance": 0.01}}


def row(origin: str, trial: int | None, mean: float, std: float = 0.001) -> ConfirmedRow:
    return ConfirmedRow(origin, trial, mean, std, 2)


def rows(best: float, std: float = 0.001) -> Rows:
    front = [row("front", 0, 0.5), row("front", 1, best, std)]
    return Rows((), front, (), row("dense", None, 0.9))


def test_a_model_that_is_clearly_better_than_the_dense_one_is_named() -> None:
    assert (
        "trial 1 is better than the dense model (accuracy 0.9500 ± 0.0010 against"
        in undertraining(rows(0.95), "accuracy", 1.0, SUMMARY)
    )


@pytest.mark.parametrize("shown", [rows(0.905), rows(0.95, std=0.06), rows(0.8), Rows()])
def test_what_is_within_the_tolerance_or_the_spread_is_not(shown: Rows) -> None:
    assert undertraining(shown, "accuracy", 1.0, SUMMARY) == ""


def test_a_small_quality_can_be_the_good_one() -> None:
    best = better_than_dense(rows(0.95), -1.0, 0.01)
    assert best is not None
    assert best.trial == 0


def test_the_last_quarter_of_the_training_is_compared_with_what_was_before() -> None:
    assert late_gain([0.5, 0.7, 0.6, 0.8], 1.0) == pytest.approx(0.1)
    assert late_gain([0.5, 0.4, 0.3, 0.2, 0.3], -1.0) == pytest.approx(0.1)
    assert late_gain([0.5, 0.9, 0.9], 1.0) is None
    assert late_gain([0.5, 0.7, float("nan"), 0.8], 1.0) is None


def test_a_dense_model_that_was_still_improving_is_told() -> None:
    summary = {**SUMMARY, "dense_late_gain": 0.05}
    said = undertraining(rows(0.8), "accuracy", 1.0, summary)
    assert said.startswith("the dense model was still improving: its accuracy gained 0.0500")
    assert undertraining(rows(0.8), "accuracy", 1.0, {**SUMMARY, "dense_late_gain": 0.005}) == ""
