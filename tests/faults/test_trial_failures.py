"""Trials that run out of memory, out of time, or into a bug: each is told apart, and the study goes
on.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator
from lightning_modules.errors import ConfigError, PlanError, TrialTimeoutError, UserError
from lightning_modules.phases.fit import DivergedError
from lightning_modules.pruning.plan import Plan
from lightning_modules.tasks import Classification
from orchestrator.__main__ import main
from orchestrator.results.rows import TrialRow, read_csv
from orchestrator.search.confirmation.confirm import Candidate, finetuned
from orchestrator.search.lab.lab import Lab
from orchestrator.search.plans.finished import read_plan
from orchestrator.search.plans.measurement import Measurement, Report
from orchestrator.search.studies.results import rows
from orchestrator.search.studies.trial import RUNGS, TRACE
from orchestrator.search.trials import evaluate
from orchestrator.search.trials.failures import (
    HALVED,
    Deadline,
    check_failures,
    most_common,
    reason_of,
    sparing_memory,
)
from orchestrator.settings.budget import parse_time
from orchestrator.tracking import TrialRecord
from orchestrator.tracking.none import NoTracker
from tests.search.problems import Bench, bench, settings_of, silent
from tests.search.test_study import CONTEXT, GOALS, RULES, SPACE, pretend, run, settings, start

MANY = 2**48
"""Floats that no machine has room for."""


def proposed() -> Plan:
    return SPACE.propose(CONTEXT, SPACE.chain(CONTEXT, 0.5))


class Spent:
    """Out of memory for the first `times` attempts; what was tried, and what the first held."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.tried: list[int] = []
        self.held: list[weakref.ref[Tensor]] = []

    def __call__(self, plan: Plan, number: int = 0, report: Report = silent) -> Measurement:
        assert not any(held() is not None for held in self.held), (
            "the first attempt's tensors are still there"
        )
        self.tried.append(plan.timing.accumulate)
        if len(self.tried) <= self.times:
            large = torch.zeros(1000)
            self.held.append(weakref.ref(large))
            report(1, 0.5, {"accuracy": 0.5, "loss": 1.0})
            report(2, 0.5, {"accuracy": 0.5, "loss": 1.0})
            torch.empty(MANY)
        return pretend(plan, number, report)


def test_out_of_memory_is_tried_once_more_with_half_the_batch() -> None:
    spent = Spent(1)
    found = sparing_memory(spent, proposed(), "halve")
    assert spent.tried == [1, 2]
    assert (found.state, found.reason) == ("completed", HALVED)


def test_and_not_a_third_time() -> None:
    spent = Spent(9)
    with pytest.raises(RuntimeError) as caught:
        sparing_memory(spent, proposed(), "halve")
    assert spent.tried == [1, 2]
    assert reason_of(caught.value).startswith("out of memory: RuntimeError: ")
    assert reason_of(caught.value).endswith(HALVED)


def test_other_errors_and_those_who_do_not_want_it_are_not_retried() -> None:
    spent = Spent(1)
    with pytest.raises(RuntimeError):
        sparing_memory(spent, proposed(), "fail")
    assert spent.tried == [1]
    calls = []

    def crashes(plan: Plan) -> Measurement:
        calls.append(1)
        raise KeyError("user code")

    with pytest.raises(KeyError):
        sparing_memory(crashes, proposed(), "halve")
    assert calls == [1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory: MemoryError"),
        (
            DivergedError("the training loss became nan at step 4"),
            "DivergedError: the training loss became nan",
        ),
        (PlanError("a plan must remove something"), "a plan must remove something"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (TrialTimeoutError("timeout: ..."), "timeout: ..."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reason_says_what_kind_of_failure_it_was(error: Exception, reason: str) -> None:
    assert reason_of(error).startswith(reason)


def test_a_trial_is_over_after_its_time() -> None:
    now = [100.0]
    deadline = Deadline(parse_time("2min"), 100.0, lambda: now[0])
    now[0] = 219.0
    deadline()
    now[0] = 221.0
    with pytest.raises(TrialTimeoutError, match=r"timeout: .* study.trial_timeout=2min; raise it"):
        deadline()


def test_a_timeout_is_a_time(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"trial_timeout: must be a time: 90s, 20min, 1.5h or 2d; got '3epochs'"
    ):
        settings(
            tmp_path,
            study={"name": "s", "n_trials": 1, "out": str(tmp_path), "trial_timeout": "3epochs"},
        )
    found = settings(
        tmp_path, study={"name": "s", "n_trials": 1, "out": str(tmp_path), "trial_timeout": "90 s"}
    )
    assert found.plain()["study"]["trial_timeout"] == "90s"
    assert "study" not in found.identity()


def test_the_rungs_of_a_first_attempt_do_not_stand_beside_those_of_the_second(
    tmp_path: Path,
) -> None:
    study, spent = start(tmp_path), Spent(1)

    def attempts(plan: Plan, number: int, report: Report) -> Measurement:
        return sparing_memory(lambda tried: spent(tried, number, report), plan, "halve")

    run(study, 1, attempts)
    (row,) = rows(study, GOALS)
    assert (row.state, row.reason) == ("completed", HALVED)
    rungs = study.get_trials()[0].user_attrs[RUNGS]
    assert [rung for rung, _, _ in rungs] == [1, 2]
    assert rungs[0][2]["accuracy"] != 0.5


def test_what_a_failed_trial_held_is_released(tmp_path: Path) -> None:
    class Ring:
        """As a trainer and its task: they hold one another."""

        def __init__(self) -> None:
            self.me, self.tensor = self, torch.zeros(10)

    held: list[weakref.ref[Ring]] = []

    def fails(plan: Plan, number: int, report: Report) -> Measurement:
        ring = Ring()
        held.append(weakref.ref(ring))
        raise RuntimeError("in the middle")

    gc.disable()
    try:
        run(start(tmp_path), 2, fails)
        assert [ring() for ring in held] == [None, None]
    finally:
        gc.enable()


def failing(*numbers: int, error: type[Exception] = RuntimeError) -> Any:
    def attempt(plan: Plan, number: int, report: Report) -> Measurement:
        if number in numbers:
            raise error(f"out of luck at step {number}")
        return pretend(plan, number, report)

    return attempt


HALF = replace(RULES, max_failures=0.5)


def test_a_study_in_which_most_fail_stops_with_the_most_common_reason(tmp_path: Path) -> None:
    study = start(tmp_path)
    with pytest.raises(UserError) as stopped:
        run(study, 9, failing(0, 2, 4), HALF)
    assert str(stopped.value) == (
        "3 of 5 trials failed, a larger share than study.max_failures=0.5; the most common reason "
        "(3 times): "
        "RuntimeError: out of luck at step 4; mend it and give the same command again, or "
        "study.max_failures=1"
    )
    assert [row.state for row in rows(study, GOALS)] == ["failed", "completed"] * 2 + ["failed"]
    assert "out of luck at step 4" in study.get_trials()[4].user_attrs[TRACE]
    run(study, 9, failing(), HALF)  # mended: failures count as ended, and no longer against it
    assert [row.state for row in rows(study, GOALS)][5:] == ["completed"] * 4


@pytest.mark.slow
def test_few_failures_a_half_and_a_share_of_one_stop_nothing(tmp_path: Path) -> None:
    for name, n_trials, failed, rules in (
        ("few", 4, (0, 1, 2, 3), HALF),
        ("half", 6, (1, 3, 5), HALF),
        ("all", 8, tuple(range(8)), RULES),
    ):
        study = start(tmp_path / name)
        run(study, n_trials, failing(*failed), rules)
        states = [row.state for row in rows(study, GOALS)]
        assert states == [
            "failed" if number in failed else "completed" for number in range(n_trials)
        ]


def test_plans_that_remove_nothing_or_empty_a_group_are_rejected_and_stop_nothing(
    tmp_path: Path,
) -> None:
    study = start(tmp_path)
    run(study, 6, failing(0, 1, 2, 3, 4, error=PlanError), HALF)
    found = rows(study, GOALS)
    assert [row.state for row in found] == ["rejected"] * 5 + ["completed"]
    assert found[4].reason == "out of luck at step 4"
    assert TRACE not in study.get_trials()[4].user_attrs


def test_trials_that_were_rejected_or_stopped_did_not_fail() -> None:
    check_failures(("rejected", "over"), [("rejected", "over")] * 9, 0.1)
    check_failures(("failed", "a"), [("failed", "a"), *[("stopped", "b")] * 9, ("", "")], 0.1)
    with pytest.raises(UserError, match="2 of 11 trials failed"):
        check_failures(("failed", "a"), [*[("failed", "a")] * 2, *[("stopped", "b")] * 9], 0.1)


def test_reasons_that_differ_in_numbers_are_the_same() -> None:
    nan = [
        f"DivergedError: the training loss became {value} at step {step}"
        for value, step in ((1e9, 3), (2.5e8, 70))
    ]
    assert most_common(["a bug", nan[0], "another", nan[1]]) == (2, nan[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
def test_a_finetuning_that_takes_too_long_ends_in_the_middle(home: Path, tmp_path: Path) -> None:
    here: Bench = bench(home, tmp_path, "study.trial_timeout=0.001s")
    with pytest.raises(TrialTimeoutError, match=r"study.trial_timeout=0.001s"):
        here.evaluator(here.propose(0.5), 0, silent)
    assert not (here.store.folder / "0").exists()


@pytest.mark.parametrize("method", ["taylor", "ablation", "apoz", "rank", "weight_snip", "depth"])
def test_scoring_that_takes_too_long_ends_in_the_middle(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    here = bench(home, tmp_path, f"method={method}", "study.trial_timeout=0.001s")
    monkeypatch.setattr(Lab, "recalibrate", None)  # what follows the scores
    with pytest.raises(TrialTimeoutError):
        here.evaluator(here.propose(0.5), 0, silent)


def test_a_plan_that_needed_halves_is_confirmed_in_halves(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, seen = bench(home, tmp_path), []
    whole = Classification.training_step

    def step(self: Classification, batch: Any, index: int) -> Tensor:
        seen.append(len(batch[0]))
        return whole(self, batch, index)

    monkeypatch.setattr(Classification, "training_step", step)
    full = here.facts.structure.full()
    for accumulate, expected in ((1, [64] * 6), (2, [32] * 12)):
        seen.clear()
        finetuned(
            here.lab,
            Candidate("x", here.facts.model, full, None, accumulate=accumulate),
            0,
            1,
            0.5,
        )
        assert seen == expected


def test_a_diverging_trial_fails(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "phases.finetune.optimizer.lr=1e12")
    with pytest.raises(DivergedError):
        here.evaluator(here.propose(0.5), 0, silent)


STUDY = [
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=2",
    "phases.finetune.round_steps=4",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "phases.confirm.baselines=[]",
    "search.chain.targets=3",
    "threads=1",
    "study.n_trials=5",
    "stopping=never",
    "tracking=none",
]


@pytest.mark.slow
def test_a_study_survives_a_trial_without_memory_and_one_with_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []
    records: dict[int, TrialRecord] = {}
    whole_run, whole_step = evaluate.run_plan, Classification.training_step

    def run_plan(*arguments: Any) -> Any:
        attempts.append(len(attempts))
        return whole_run(*arguments)

    def step(self: Classification, batch: Any, index: int) -> Tensor:
        if attempts[-1:] == [1] and len(batch[0]) == 64:
            torch.empty(MANY)
        if attempts[-1:] == [3]:
            raise ZeroDivisionError("a bug in the task")
        return whole_step(self, batch, index)

    def trial(self: NoTracker, record: TrialRecord) -> None:
        records[record.number] = record

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "run_plan", run_plan)
    monkeypatch.setattr(Classification, "training_step", step)
    monkeypatch.setattr(NoTracker, "trial", trial)
    assert main(STUDY) == 0

    found = read_csv(tmp_path / "runs" / "digits_small" / "trials.csv", TrialRow)
    assert [row.state for row in found] == [
        "completed",
        "completed",
        "failed",
        "completed",
        "completed",
    ]
    assert [row.reason for row in found] == [
        "",
        HALVED,
        "ZeroDivisionError: a bug in the task",
        "",
        "",
    ]
    assert records[1].tags["reason"] == HALVED
    assert "in step\n" in records[2].artifacts["traceback.txt"]
    assert "traceback.txt" not in records[1].artifacts
    retried = tmp_path / "runs" / "digits_small" / "trials" / "1"
    assert read_plan(retried)["plan"]["timing"]["accumulate"] == 2

    monkeypatch.setattr(Classification, "training_step", whole_step)
    small = [word for word in STUDY if not word.startswith("study.")]
    configured = settings_of(tmp_path, *small)
    assert orchestrator.replay(configured, retried).identical
