"""Trying every combination: also where there are more than a machine integer counts."""

from __future__ import annotations

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from orchestrator.search.samplers import BruteForce


def test_a_space_beyond_two_to_the_63_is_sampled_without_repetition() -> None:
    space: dict[str, BaseDistribution] = {
        f"x{place}": CategoricalDistribution((1, 2, 3, 4)) for place in range(40)
    }
    study = optuna.create_study(sampler=BruteForce(space))
    drawn = []
    for value in range(5):
        trial = study.ask(space)
        drawn.append(tuple(trial.params.values()))
        study.tell(trial, float(value))
    assert len(set(drawn)) == 5


def test_every_combination_of_a_small_space_comes_once() -> None:
    space: dict[str, BaseDistribution] = {
        "a": IntDistribution(0, 2),
        "b": CategoricalDistribution(("x", "y")),
    }
    study = optuna.create_study(sampler=BruteForce(space, seed=3))
    drawn = []
    for value in range(6):
        trial = study.ask(space)
        drawn.append(tuple(trial.params.values()))
        study.tell(trial, float(value))
    assert sorted(drawn) == [(a, b) for a in range(3) for b in "xy"]
