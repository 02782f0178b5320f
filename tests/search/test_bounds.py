"""Bounds on a real, small problem: what is known before training rejects, what is not makes
infeasible.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.plan import Plan
from orchestrator.latency.timing import Spread
from orchestrator.search.bounds import check_bounds, costs_before
from orchestrator.search.costs import Costed, costs_of
from orchestrator.search.lab.latency_model import pruned
from orchestrator.search.plans.measurement import Measurement
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.space import Uniform
from orchestrator.search.trials.evaluate import Evaluator, trial_recipe
from orchestrator.search.trials.methods import prepare_method
from tests.search.problems import Prepared, lab_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose dense baseline all problems of this file share."""
    return tmp_path_factory.mktemp("bounds")


@pytest.fixture(autouse=True)
def _a_latency_is_estimated_from_few_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.search.lab.latency_model.CURVE", (0.5,))
    monkeypatch.setattr("orchestrator.search.lab.latency_model.HELD_OUT", 2)


def evaluated(case: Prepared, threshold: float, folder: Path) -> Measurement:
    method = prepare_method(case.lab, case.settings.method)
    space = Uniform(steps=(1, 1), shapes=("one_shot",), rounds=(1, 1))
    params = {
        "threshold": threshold,
        "schedule.steps": 1,
        "schedule.shape": "one_shot",
        "finetune.rounds": 1,
    }
    plan = space.propose(method.context(case.lab, None), params)
    store = PlanStore(folder / "trials", case.facts)
    evaluator = Evaluator(case.lab, trial_recipe(case.settings, case.lab), store)
    return evaluator(plan, 0, lambda *_: None)


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        ("size_mb: {most: 0.02}", r"size_mb 0.0\d+ is over objectives.bounds.size_mb.most 0.02"),
        ("flops: {most: 20000}", "flops .* is over objectives.bounds.flops.most 20000"),
        (
            "params_ratio: {most: 0.1}",
            r"params_ratio 0.\d+ is over objectives.bounds.params_ratio.most 0.1",
        ),
        ("params: {least: 15000}", "params .* is under objectives.bounds.params.least 15000"),
        ("effective_flops: {most: 20000}", "effective_flops .* is over"),
        ("latency_ms: {least: 0.01, most: 1000}, size_mb: {most: 0.02}", "size_mb"),
    ],
)
def test_what_is_known_before_training_rejects(
    home: Path, tmp_path: Path, bound: str, reason: str
) -> None:
    case = Prepared(home, f"objectives.bounds={{{bound}}}")
    found = evaluated(case, 0.3, tmp_path)
    assert found.state == "rejected"
    assert found.rungs == ()
    assert re.search(reason, found.reason)
    assert not (tmp_path / "models").exists()


def test_quality_and_nonzero_weights_are_known_afterwards(home: Path, tmp_path: Path) -> None:
    case = Prepared(
        home, "objectives.bounds={accuracy: {least: 0.999}, nonzero_params: {most: 10}}"
    )
    found = evaluated(case, 0.3, tmp_path)
    assert found.state == "completed"
    values = {**found.costs, **found.metrics}
    assert case.facts.goals.broken(values).count("objectives.bounds.") == 2


def test_a_bounded_latency_is_measured_once_before_training(home: Path, tmp_path: Path) -> None:
    case = Prepared(home, "objectives.bounds={latency_ms: {most: 1000}}")
    calls: list[float] = []

    def clock(*_: Any) -> Spread:
        calls.append(float(len(calls) + 1))
        return Spread(calls[-1], calls[-1], calls[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.latency.bench.Bench.__call__", clock)
        found = evaluated(case, 0.3, tmp_path)
    assert found.state == "completed"
    assert (
        found.costs["latency_ms"] == calls[0]
    )  # it may not pass a bound before training and fail it afterwards


def test_costs_before_training_are_those_after_it(home: Path, tmp_path: Path) -> None:
    case = Prepared(
        home, "objectives.bounds={size_mb: {most: 9}}", "objectives=quality_estimated_latency"
    )
    found = evaluated(case, 0.4, tmp_path)
    kept = case.facts.structure.sizes * 0 + list(found.kept.values())
    plan = Plan("l2", kept=found.kept)
    before = costs_before(case.lab, plan)
    assert set(before) == {"flops", "params", "effective_flops", "estimated_latency_ms", "size_mb"}
    assert before == pytest.approx({name: found.costs[name] for name in before})
    assert "size_mb" not in costs_before(case.lab, replace(plan, export="int8"))
    assert "effective_flops" not in costs_before(case.lab, replace(plan, activation=0.5))
    shaped = Costed(kept, shaped=pruned(case.facts.model, case.facts.structure, kept))
    assert costs_of(case.facts.prices, shaped, ["size_mb"]) == pytest.approx(
        {"size_mb": found.costs["size_mb"]}
    )


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (
            "size_mb: {most: 0.0001}",
            r"objectives.bounds.size_mb.most must be at least 0.000\d+, what the smallest",
        ),
        ("latency_ms: {most: 1e-6}", r"objectives.bounds.latency_ms.most must be at least [0-9]"),
        (
            "params: {least: 1e9}",
            r"objectives.bounds.params.least must be at most .* what the dense model has",
        ),
        (
            "estimated_latency_ms: {most: 1e-9}",
            r"objectives.bounds.estimated_latency_ms.most must be at least",
        ),
        ("flops: {most: 1}", r"objectives.bounds.flops.most must be at least"),
        ("flops_ratio: {most: 0.001}", r"objectives.bounds.flops_ratio.most must be at least 0.0"),
        (
            "params_ratio: {least: 1.5}",
            r"objectives.bounds.params_ratio.least must be at most 1, what the dense model",
        ),
    ],
)
def test_bounds_that_nothing_keeps_are_refused_before_training(
    tmp_path: Path, bound: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lab_of(tmp_path, f"objectives.bounds={{{bound}}}")
    assert not list(tmp_path.glob("baselines/*/dense.json"))


def test_methods_of_single_weights_leave_sizes_as_they_are(home: Path) -> None:
    case = Prepared(home, "method=weight_l1", "objectives=quality_effective_flops")
    settings = case.settings
    whole = case.facts.dense_costs["size_mb"]
    tight = settings.model_copy(
        update={
            "objectives": settings.objectives.model_validate(
                {"bounds": {"size_mb": {"most": 0.9 * whole}}}
            )
        }
    )
    with pytest.raises(ConfigError, match=r"size_mb.most must be at least"):
        check_bounds(tight, case.facts.prices, case.facts.model)
