"""The weight of the dense outputs as a search dimension: in the space, in the plan, in the
training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.plan import Plan, Timing
from tests.search.problems import Bench, bench

RANGE = "space.distillation=[0.2,0.6]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def here(home: Path, tmp_path: Path, *overrides: str) -> Bench:
    return bench(home, tmp_path, *overrides)


def test_a_range_is_a_dimension_and_the_chain_takes_its_middle(home: Path, tmp_path: Path) -> None:
    searched = here(home, tmp_path, RANGE)
    dimension = searched.space.distributions(searched.context)["distillation.weight"]
    assert (dimension.low, dimension.high) == (0.2, 0.6)  # type: ignore[attr-defined]
    params = searched.space.chain(searched.context, 0.5)
    assert params["distillation.weight"] == pytest.approx(0.4)
    assert searched.space.propose(searched.context, params).timing.distillation == pytest.approx(
        0.4
    )


def test_equal_ends_fix_it_and_null_leaves_it_to_the_phase(home: Path, tmp_path: Path) -> None:
    fixed = here(home, tmp_path, "space.distillation=[0.3,0.3]")
    assert "distillation.weight" not in fixed.space.distributions(fixed.context)
    assert fixed.propose(0.5).timing.distillation == 0.3
    assert here(home, tmp_path).propose(0.5).timing.distillation is None


def test_the_weight_is_what_the_model_is_trained_with(home: Path, tmp_path: Path) -> None:
    def weights(*overrides: str, **params: float) -> dict[str, torch.Tensor]:
        one = here(home, tmp_path / str(len(list(tmp_path.iterdir()))), *overrides)
        return one.run(one.propose(0.5, **params))[1].state_dict()

    asked = weights(RANGE, **{"distillation.weight": 0.5})
    configured = weights("phases.finetune.distillation.weight=0.5")
    other = weights(RANGE, **{"distillation.weight": 0.25})
    assert all(torch.equal(asked[name], configured[name]) for name in asked)
    assert any(not torch.equal(asked[name], other[name]) for name in asked)


def test_mixed_copies_are_those_of_the_plan_or_as_configured(home: Path, tmp_path: Path) -> None:
    def weights(mixed: int | None, *overrides: str) -> dict[str, torch.Tensor]:
        one = here(home, tmp_path / str(len(list(tmp_path.iterdir()))), *overrides)
        one.evaluator = replace(one.evaluator, mixed=mixed)
        return one.run(one.propose(0.5))[1].state_dict()

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    planned, plain = weights(2), weights(None)
    assert same(planned, weights(None, "phases.finetune.distillation.mixed=2"))
    assert same(plain, weights(0, "phases.finetune.distillation.mixed=2"))
    assert not same(planned, plain)


def test_plans_keep_it(home: Path, tmp_path: Path) -> None:
    plan = Plan("l2", timing=Timing(distillation=0.25))
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(PlanError, match="distillation"):
        Timing(distillation=1.5)
    with pytest.raises(PlanError, match="mixed"):
        Timing(mixed=-1)


@pytest.mark.parametrize(
    "overrides",
    [("space.distillation=[0.6,0.2]",), (RANGE, "phases.finetune.distillation=null")],
)
def test_what_cannot_be_is_refused(home: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="distillation"):
        here(home, tmp_path, *overrides)
