"""The allocation of a plan, searched on untrained models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Counts
from orchestrator.search.lab.judge import validation_judge
from orchestrator.search.trials.allocation_search import AllocationSearch, allocation_search
from orchestrator.search.trials.working import Working
from tests.search.problems import Bench, bench, settings_of, silent

SEARCHED = ["method.compensate=true", "search.allocations=6", "phases.finetune.round_steps=0"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("study"), *SEARCHED)


class Watching:
    """Judges by the share of one group, and keeps what it has judged."""

    def __init__(self) -> None:
        self.judged: list[float] = []

    def __call__(self, model: nn.Module) -> float:
        sizes = [len(weight) for name, weight in model.named_parameters() if weight.dim() == 4]
        self.judged.append(sizes[0] / sum(sizes))
        return self.judged[-1]


def searched(here: Bench, judge: object, plan: Plan, allocations: int) -> Plan:
    search = AllocationSearch(judge, allocations)  # type: ignore[arg-type]
    working = Working(here.facts.model, here.facts.structure.full())
    return search(here.lab, here.settings.method, plan, working)


def model_of(here: Bench, number: int) -> nn.Module:
    finished = {plan.number: plan for plan in here.store.finished()}
    return here.evaluator.inherited(finished[number]).model


def counts(here: Bench, plan: Plan) -> Counts:
    return plan.counts(here.facts.structure)


def test_the_best_of_what_was_judged_is_taken_within_the_macs_of_the_plan(here: Bench) -> None:
    judge = Watching()
    plan = here.propose(0.4)
    best = searched(here, judge, plan, 8)
    assert len(judge.judged) <= 8
    macs = here.facts.cost.macs
    assert macs(counts(here, best)) <= macs(counts(here, plan))
    again = Watching()
    assert searched(here, again, best, 1) == best
    assert again.judged[0] == min(judge.judged)


def test_the_same_seed_searches_the_same_allocations(here: Bench) -> None:
    first = Watching()
    second = Watching()
    plan = here.propose(0.4)
    assert searched(here, first, plan, 4) == searched(here, second, plan, 4)
    assert first.judged == second.judged


def test_a_plan_that_nothing_beats_stays_as_it_is(here: Bench) -> None:
    plan = here.propose(0.4)
    assert searched(here, lambda model: 1.0, plan, 6) == plan


def test_units_that_are_gone_do_not_come_back(here: Bench) -> None:
    parent = here.propose(0.6)
    structure = here.facts.structure
    here.run(parent, 0)
    kept = counts(here, parent)
    finished = {plan.number: plan for plan in here.store.finished()}[0]
    working = here.evaluator.inherited(finished)
    search = AllocationSearch(Watching(), 8)  # type: ignore[arg-type]
    best = search(here.lab, here.settings.method, here.propose(0.2), working)
    assert (counts(here, best) <= kept).all()
    assert (structure.counts(working.alive) == kept).all()


def test_a_trial_records_the_allocation_that_was_taken(here: Bench) -> None:
    plan = here.propose(0.3)
    search = allocation_search(here.settings, here.lab)
    measured = replace(here.evaluator, allocations=search)(plan, 5, silent)
    here.run(plan, 6)
    searched_model, plain_model = (model_of(here, number) for number in (5, 6))
    judge = validation_judge(here.lab, "search.allocations")
    assert judge(searched_model) <= judge(plain_model)
    taken = Plan.from_json(measured.plan)
    assert len(taken.asked) == (1 if taken.kept == plan.kept else 2)
    assert np.array_equal(counts(here, taken), list(measured.kept.values()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.allocations=4"], "take method.compensate=true"),
        (
            ["search.allocations=4", "method.compensate=true", "study.budget=1min"],
            "search.allocations takes time that a budget does not count",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises((ValidationError, ConfigError), match=message):
        settings_of(tmp_path, *words)
