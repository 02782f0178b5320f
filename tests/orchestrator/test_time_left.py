"""How long a study is expected to take still."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.jobs.explore import seconds_left
from orchestrator.search.studies.trial import MEASURED, SECONDS
from tests.search.problems import settings_of

CONFIRM = ["phases.confirm.seeds=[1,2]", "phases.confirm.rounds=3", "phases.confirm.max_models=6"]


def trained(seconds: float, rounds: int, ratio: float) -> Any:
    measured = {"trained_rounds": rounds, "ratios": {"flops": ratio}}
    return SimpleNamespace(user_attrs={MEASURED: measured, SECONDS: seconds})


def test_trials_the_front_the_dense_model_and_ladders_are_counted(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, *CONFIRM, "phases.confirm.baselines=[uniform]")
    ended = [trained(8.0, 4, 0.3)] * 5
    trials = 7 * 4
    front = 3 * 2 * 3
    dense = 2 * 3
    ladder = 3 * 4 + 3 * 2 * 3
    expected = 2.0 * (trials + front + dense + ladder)
    assert seconds_left(settings, ended, 12, models=3) == pytest.approx(expected)


def test_fewer_models_on_the_front_take_less_time(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, *CONFIRM, "phases.confirm.baselines=[]")
    ended = [trained(8.0, 4, 0.3)] * 12
    one = seconds_left(settings, ended, 12, models=1)
    six = seconds_left(settings, ended, 12, models=6)
    assert one == pytest.approx(2.0 * 2 * 6)
    assert six == pytest.approx(2.0 * 7 * 6)


def test_rounds_of_larger_models_take_longer(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, *CONFIRM, "phases.confirm.baselines=[]")
    ended = [trained(4.0, 4, 0.1), trained(8.0, 4, 0.5)]
    dense = 3.25  # of a round, by the line through both
    assert seconds_left(settings, ended, 2, models=0) == pytest.approx(6 * dense)
