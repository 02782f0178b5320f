"""Rank correlations of rungs with the end, on trials made by hand."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from scipy.stats import spearmanr

from orchestrator.results.rows import RungRow
from orchestrator.search.goals import Goals
from orchestrator.search.studies.rungs import in_words, rank_correlation, rung_rows
from orchestrator.search.studies.trial import MEASURED, RUNGS

Trial = optuna.trial.FrozenTrial
ACCURACY = Goals("accuracy", {"accuracy": 1.0}, ("flops",))


def trial(ratio: float, *rungs: tuple[float, float], state: str = "COMPLETE") -> Trial:
    """(loss, accuracy) by rung."""
    shown = [
        (place + 1, ratio, {"loss": loss, "accuracy": q}) for place, (loss, q) in enumerate(rungs)
    ]
    end = {"metrics": shown[-1][2], "ratios": {"flops": ratio}}
    done = optuna.trial.TrialState[state]
    values = [rungs[-1][1], ratio] if state == "COMPLETE" else None
    return optuna.trial.create_trial(
        state=done, values=values, user_attrs={RUNGS: shown, MEASURED: end}
    )


def test_the_same_order_gives_one_and_the_opposite_order_minus_one() -> None:
    trials = [trial(0.1 * i, (1.0 - 0.1 * i, 0.5 - 0.01 * i), (0.1, 0.1 * i)) for i in range(1, 6)]
    (row,) = rung_rows(trials, ACCURACY)
    assert (row.rung, row.trials, row.loss, row.quality) == (
        1,
        5,
        pytest.approx(1.0),
        pytest.approx(-1.0),
    )
    (less,) = rung_rows(trials, Goals("loss", {"loss": -1.0}, ("flops",)))
    assert less.loss == less.quality  # the end is the same for all here
    assert less.loss is None


def test_it_is_spearman_s_and_what_cost_alone_explains_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    one, other, cost = rng.normal(size=(3, 200))
    one, other = np.round(one, 1), np.round(one + other, 1)  # with ties
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other)[0])
    # both follow cost alone: together they rank alike, at equal cost they do not
    a, b = cost + 0.1 * rng.normal(size=200), cost + 0.1 * rng.normal(size=200)
    assert (rank_correlation(a, b) or 0.0) > 0.95
    assert abs(rank_correlation(a, b, cost) or 0.0) < 0.2
    r = [float(spearmanr(*pair)[0]) for pair in ((one, other), (one, a), (other, a))]
    closed = (r[0] - r[1] * r[2]) / math.sqrt((1 - r[1] ** 2) * (1 - r[2] ** 2))
    assert rank_correlation(one, other, a) == pytest.approx(closed)


def test_values_that_do_not_vary_and_few_trials_give_none() -> None:
    same = [trial(0.1 * i, (0.3, 0.5), (0.1, 0.9)) for i in range(1, 6)]
    assert rung_rows(same, ACCURACY) == [RungRow(1, 5, None, None, None, None)]
    few = [trial(0.1 * i, (0.3 * i, 0.5), (0.1, 0.1 * i)) for i in range(1, 4)]
    assert rung_rows(few, ACCURACY) == [RungRow(1, 3, None, None, None, None)]
    assert rung_rows([], ACCURACY) == []
    assert (
        rank_correlation(np.arange(5.0), np.arange(5.0), np.arange(5.0)) is None
    )  # nothing is left at equal cost


def test_only_completed_trials_count_and_only_beyond_the_rung() -> None:
    """The last rung of a trial is its end and would agree with itself."""
    trials = [trial(0.1 * i, (1.0 / i, 0.1 * i), (0.1, 0.1 * i)) for i in range(1, 5)]
    trials += [trial(0.1, (9.0, 0.9)), trial(0.2, (9.0, 0.9), (9.0, 0.9), state="PRUNED")]
    (row,) = rung_rows(trials, ACCURACY)
    assert (row.rung, row.trials, row.loss) == (1, 4, pytest.approx(1.0))


def test_rows_in_words() -> None:
    rows = [RungRow(1, 12, 0.5, 0.25, 0.75, None), RungRow(2, 3, None, None, None, None)]
    words = in_words(rows)
    assert words.endswith("in the end: rung 1 0.50 (0.25 at equal FLOPs), 12 trials")
    assert in_words(rows[1:]) == "no rung has 4 trials that completed after it: no rank correlation"
