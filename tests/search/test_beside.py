"""Models of ladders stand on the front where validation data says that they are ahead of it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.results.rows import ConfirmedRow
from orchestrator.search.confirmation.beside import with_ladders
from orchestrator.search.goals import Goals
from orchestrator.settings.objectives import Bound

GOALS = Goals("accuracy", {"accuracy": 1.0}, ("flops",))


def row(origin: str, trial: int, quality: float, cost: float) -> ConfirmedRow:
    return ConfirmedRow(
        origin,
        trial,
        # test data says the opposite, and decides nothing
        1.0 - quality,
        0.0,
        2,
        path=f"models/{origin}-{trial}",
        costs={"flops": cost},
        ratios={"flops": cost / 100.0},
        validation={"accuracy": quality},
    )


FRONT = [row("front", 0, 0.9, 50.0), row("front", 1, 0.8, 20.0)]


def joined(*ladders: ConfirmedRow, goals: Goals = GOALS) -> list[str]:
    return [member.name for member in with_ladders(goals, FRONT, ladders)][len(FRONT) :]


def test_a_model_that_is_ahead_of_its_match_joins_the_front() -> None:
    assert joined(row("uniform", 1, 0.85, 20.2)) == ["uniform-1"]
    assert joined(row("uniform", 0, 0.95, 49.0), row("uniform", 1, 0.7, 20.0)) == ["uniform-0"]


def test_a_model_that_is_as_good_or_costs_more_does_not() -> None:
    assert joined(row("uniform", 1, 0.8, 19.9)) == []
    assert joined(row("uniform", 0, 0.9, 50.0)) == []
    assert joined(row("random", 9, 0.85, 60.0)) == []


def test_of_two_ladders_the_better_one_joins() -> None:
    found = joined(row("uniform", 1, 0.85, 20.0), row("global", 1, 0.86, 20.1))
    assert found == ["global-1"]


def test_a_small_quality_can_be_the_good_one() -> None:
    goals = replace(GOALS, signs={"accuracy": -1.0})
    assert joined(row("uniform", 0, 0.85, 50.0), goals=goals) == []
    assert joined(row("uniform", 1, 0.75, 20.0), goals=goals) == ["uniform-1"]


def test_a_model_out_of_bounds_or_without_files_does_not_join() -> None:
    bounded = replace(GOALS, bounds={"flops_ratio": Bound(most=0.1)})
    assert joined(row("uniform", 1, 0.85, 20.0), goals=bounded) == []
    assert joined(replace(row("uniform", 1, 0.85, 20.0), path="")) == []
