"""Objectives, bounds and the point the volume counts from, on values made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe
from orchestrator.costs import COSTS
from orchestrator.results.rows import TrialRow
from orchestrator.search.front import volume
from orchestrator.search.goals import Goals, goals_of, study_reference
from orchestrator.search.studies.results import candidates, front
from orchestrator.settings import ObjectiveSettings
from orchestrator.settings.objectives import Bound
from tests.search.problems import settings_of

FOUR = Goals("accuracy", {"accuracy": 1.0, "loss": -1.0}, ("latency_ms", "size_mb"))


def row(number: int, quality: float, **known: Any) -> TrialRow:
    costs = {name: known.pop(name) for name in list(known) if name in COSTS}
    made = TrialRow(
        number,
        "completed",
        1,
        None,
        quality,
        1.0,
        0.1,
        "search",
        "",
        axis="latency_ms",
        costs=costs,
    )
    return replace(made, **known)


def test_directions_and_points_have_one_order() -> None:
    assert FOUR.names == ["accuracy", "loss", "latency_ms", "size_mb"]
    assert FOUR.directions == ["maximize", "minimize", "minimize", "minimize"]
    metrics = {"accuracy": 0.9, "loss": 0.3}
    assert FOUR.point(metrics, {"latency_ms": 2.0, "size_mb": 1.0, "flops": 7.0}) == [
        0.9,
        0.3,
        2.0,
        1.0,
    ]
    falling = Goals("loss", {"loss": -1.0, "f1": 1.0}, ("flops",))
    assert falling.point({"loss": 0.2, "f1": 0.8}, {"flops": 5.0}) == [-0.2, -0.8, 5.0]
    assert falling.directions == ["minimize", "maximize", "minimize"]


def test_a_front_of_latency_is_not_that_of_flops() -> None:
    """The one with fewer FLOPs and the same quality is slower: it leaves the latency front and
    stays on the other.
    """
    slow = row(0, 0.9, flops=10, latency_ms=3.0)
    fast = row(1, 0.9, flops=20, latency_ms=2.0)
    by_latency = Goals("accuracy", {"accuracy": 1.0}, ("latency_ms",))
    by_flops = Goals("accuracy", {"accuracy": 1.0}, ("flops",))
    assert front([slow, fast], by_latency) == [fast]
    flops = [replace(found, axis="flops") for found in (slow, fast)]
    assert front(flops, by_flops) == [flops[0]]


def test_what_is_better_in_any_objective_stays_on_the_front() -> None:
    plain = {"latency_ms": 2.0, "size_mb": 1.0, "metrics": {"loss": 0.3}}
    best = row(0, 0.9, **plain)
    sure = row(1, 0.8, **{**plain, "metrics": {"loss": 0.2}})
    small = row(2, 0.8, **{**plain, "size_mb": 0.5})
    quick = row(3, 0.8, **{**plain, "latency_ms": 1.0})
    worse = row(4, 0.8, **plain)
    found = front([best, sure, small, quick, worse], FOUR)
    assert {member.number for member in found} == {0, 1, 2, 3}
    assert [member.costs["latency_ms"] for member in found] == [2.0, 2.0, 2.0, 1.0]


def test_infeasible_trials_are_no_members_and_no_candidates() -> None:
    good = row(0, 0.8, latency_ms=2.0, size_mb=1.0, metrics={"loss": 0.3})
    out = replace(good, number=1, state="infeasible", quality=0.99)
    assert front([good, out], FOUR) == [good]
    assert candidates([good, out], FOUR, 0.0, 3) == [good]


def test_candidates_are_spread_along_the_first_cost() -> None:
    known = [
        row(n, 0.5 + 0.01 * n, latency_ms=float(n), size_mb=5.0, metrics={"loss": 1.0})
        for n in (1, 2, 4, 8)
    ]
    chosen = candidates(known, FOUR, 0.0, 2)
    assert [member.costs["latency_ms"] for member in chosen] == sorted(
        (m.costs["latency_ms"] for m in chosen), reverse=True
    )
    assert len(chosen) == 2


@pytest.mark.parametrize(
    ("bound", "value", "excess", "reason"),
    [
        (Bound(most=3.0), 2.0, -1.0, ""),
        (Bound(most=3.0), 3.0, 0.0, ""),
        (Bound(most=3.0), 3.5, 0.5, "latency_ms 3.5 is over objectives.bounds.latency_ms.most 3"),
        (
            Bound(least=0.9),
            0.7,
            pytest.approx(0.2),
            "latency_ms 0.7 is under objectives.bounds.latency_ms.least 0.9",
        ),
        (Bound(least=1.0, most=3.0), 2.0, -1.0, ""),
    ],
)
def test_a_bound_says_how_far_outside_a_value_is(
    bound: Bound, value: float, excess: float, reason: str
) -> None:
    assert bound.excess(value) == excess
    assert bound.broken("latency_ms", value) == reason


def test_unknown_values_break_no_bound() -> None:
    goals = replace(FOUR, bounds={"accuracy": Bound(least=0.9), "latency_ms": Bound(most=1.0)})
    assert goals.broken({"latency_ms": 0.5}) == ""
    assert goals.excesses({"latency_ms": 0.5}) == {"latency_ms": -0.5}
    assert goals.broken({"latency_ms": 2.0, "accuracy": 0.5}).count(";") == 1


# --- the volume
# -------------------------------------------------------------------------------------------------


def test_the_volume_is_that_of_boxes_put_together() -> None:
    corner = np.array([0.5, 1.0, 1.0])
    assert volume(np.array([[0.9, 0.5, 0.25]]), corner) == pytest.approx(0.4 * 0.5 * 0.75)
    two = np.array([[0.9, 0.5, 0.5], [0.7, 0.25, 0.5]])
    assert volume(two, corner) == pytest.approx(0.5 * (0.4 * 0.5 + 0.2 * 0.25))
    assert volume(np.array([[0.4, 0.1, 0.1], [0.9, 1.0, 0.1]]), corner) == 0.0
    assert volume(np.zeros((0, 3)), corner) == 0.0


def reference(**changes: Any) -> Any:
    objectives = ObjectiveSettings(**changes)
    signs = {
        name: -1.0 if name == "loss" else 1.0 for name in (objectives.quality, *objectives.metrics)
    }
    goals = Goals(objectives.quality, signs, objectives.costs)
    settings: Any = SimpleNamespace(
        objectives=objectives, task=Recipe("lightning_modules.tasks.Classification")
    )
    return study_reference(
        settings,
        goals,
        {"accuracy": 0.95, "loss": 0.2, "f1": 0.9},
        {"flops": 100.0, "size_mb": 4.0},
    )


def test_two_objectives_along_flops_keep_the_area_over_the_log_axis() -> None:
    found = reference()
    assert found.plain() == {"accuracy": 0.5, "flops_ratio": 1.0, "least_ratio": 1 / 32}
    at = [{"accuracy": 0.9}], [{"flops": 100.0 * math.sqrt(1 / 32)}]
    assert found.volume(*at) == pytest.approx(0.4 * 0.5)


def test_a_quality_that_is_to_be_small_counts_below_its_reference() -> None:
    found = reference(quality="loss", references={"loss": 0.5})
    half = [{"flops": 100.0 * math.sqrt(1 / 32)}]
    assert found.volume([{"loss": 0.1}], half) == pytest.approx(0.4 * 0.5)
    assert found.volume([{"loss": 0.9}], half) == 0.0


def test_other_and_more_objectives_count_as_ratios_to_the_dense_model() -> None:
    found = reference(costs=("size_mb",))
    assert found.plain() == {"accuracy": 0.5, "size_mb_ratio": 1.0}
    assert found.volume([{"accuracy": 0.9}], [{"size_mb": 1.0}]) == pytest.approx(0.4 * 0.75)
    more = reference(costs=("flops", "size_mb"), metrics=("loss",))
    assert more.plain() == {"accuracy": 0.5, "loss": 1.2, "flops_ratio": 1.0, "size_mb_ratio": 1.0}
    at = [{"accuracy": 0.9, "loss": 0.7}], [{"flops": 50.0, "size_mb": 1.0}]
    assert more.volume(*at) == pytest.approx(0.4 * 0.5 * 0.5 * 0.75)
    assert reference(costs=("size_mb",), metrics=("f1",)).plain()["f1"] == pytest.approx(-0.1)


def test_references_are_what_was_configured() -> None:
    found = reference(
        costs=("flops", "size_mb"), metrics=("loss",), references={"size_mb": 0.5, "loss": 0.8}
    )
    assert found.plain() == {"accuracy": 0.5, "loss": 0.8, "flops_ratio": 1.0, "size_mb_ratio": 0.5}
    at = [{"accuracy": 0.9, "loss": 0.7}], [{"flops": 50.0, "size_mb": 1.0}]
    assert found.volume(*at) == pytest.approx(0.4 * 0.1 * 0.5 * 0.25)


# --- what is refused
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objectives.metrics=[f2]"],
            r"objectives.metrics must be some of .*got 'f2'; nearest: f1",
        ),
        (["objectives.quality=acuracy"], r"objectives.quality must be one of .*nearest: accuracy"),
        (
            ["objectives.bounds={latency: {most: 1}}"],
            r"objectives.bounds must name costs .*nearest: latency_ms",
        ),
        (
            ["objectives.bounds={accuracy: {}}"],
            r"objectives.bounds.accuracy: a bound needs `least`, `most` or both",
        ),
        (
            ["objectives.bounds={accuracy: {mots: 1}}"],
            r"bounds.accuracy.mots is not a setting; nearest: most",
        ),
        (
            ["objectives.metrics=[loss]", "objectives.costs=[flops,params,size_mb]"],
            r"2 to 4 objectives; .* are 5",
        ),
        (
            ["objectives.metrics=[accuracy]"],
            r"must differ from one another; got \['accuracy', 'accuracy'\]",
        ),
        (["objectives.costs=[flop]"], r"objectives.costs.0: a cost must be one of"),
        (
            ["objectives.references={params: 1.0}"],
            r"objectives.references must be of .*got \['params'\]",
        ),
        (
            ["objectives.costs=[estimated_latency_ms]", "method=int8"],
            r"estimated_latency_ms is of models in floating",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        goals_of(settings_of(tmp_path, *overrides))
