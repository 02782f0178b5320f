"""The decisions of trials are told from their parameters, with their importance by Optuna."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.search.goals import Goals
from orchestrator.search.studies.decisions import LEAST_TRIALS, decisions

SPACE: dict[str, BaseDistribution] = {
    "flops_ratio": FloatDistribution(0.0, 1.0),
    "offset.a": FloatDistribution(-1.0, 1.0),
    "offset.b": FloatDistribution(-1.0, 1.0),
    "schedule.shape": CategoricalDistribution(("linear", "cubic")),
}


def study(trials: int, sign: float = 1.0) -> optuna.Study:
    """The quality follows from the target alone."""
    quality = "maximize" if sign > 0 else "minimize"
    made = optuna.create_study(directions=[quality, "minimize"])
    for number in range(trials):
        ratio = (number * 7 % trials) / trials
        offset = (number * 3 % 5 - 2) / 4
        params = {
            "flops_ratio": ratio,
            "offset.a": offset,
            "offset.b": -offset,
            "schedule.shape": ("linear", "cubic")[number % 2],
        }
        made.add_trial(
            create_trial(params=params, distributions=SPACE, values=[sign * ratio, ratio])
        )
    made.add_trial(create_trial(state=TrialState.FAIL))
    return made


def goals(sign: float) -> Goals:
    return Goals("quality", {"quality": sign}, ("flops",))


def test_a_family_of_parameters_is_one_decision_by_its_spread() -> None:
    decided = decisions(study(3), goals(1.0)).trials
    assert set(decided) == {0, 1, 2}
    assert decided[0] == {"flops_ratio": 0.0, "schedule.shape": "linear", "offsets": 0.5}


def test_few_trials_have_no_importance() -> None:
    assert not decisions(study(LEAST_TRIALS - 1), goals(1.0)).importance


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_the_quality_follows_from_is_most_important(sign: float) -> None:
    importance = decisions(study(40, sign), goals(sign)).importance
    assert {one.name for one in importance} == set(SPACE)
    assert max(importance, key=lambda one: one.quality).name == "flops_ratio"
    assert sum([one.quality for one in importance]) == pytest.approx(1.0)
