"""The search loop with a function in the place of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial

from lightning_modules.errors import ConfigError, DataError, PlanError, StorageError
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.plan import Plan
from lightning_modules.recipe import Recipe
from orchestrator.search.goals import Goals
from orchestrator.search.plans.lineage import differences
from orchestrator.search.plans.measurement import Measurement, Report
from orchestrator.search.space import Allocation, SearchContext
from orchestrator.search.stopping import Band, Never
from orchestrator.search.studies import leases
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import run_trials
from orchestrator.search.studies.orphans import remove_orphans
from orchestrator.search.studies.queue import done, enqueue_chain, reclaim_interrupted
from orchestrator.search.studies.results import candidates, front, rows
from orchestrator.search.studies.study import IDENTITY, Rules, Trials, bind_study, open_study
from orchestrator.search.studies.trial import KIND, REASON, STATE, TRACE
from orchestrator.settings import RECIPES, Settings, load
from tests.structures import small_resnet

SPACE = Allocation(offset=0.3)
GOALS = Goals("accuracy", {"accuracy": 1.0}, ("flops",))
RULES = Rules(GOALS, 0.95, Never(), Recipe("optuna.samplers.TPESampler", {"multivariate": True}), 0)


@cache
def context() -> SearchContext:
    structure = small_resnet()
    macs = Cost(structure).macs
    return SearchContext(
        structure, macs, macs(structure.sizes), "quantile", np.ones(structure.n_units)
    )


def __getattr__(name: str) -> SearchContext:
    """For those who import the context as a constant: made when they do."""
    if name == "CONTEXT":
        return context()
    raise AttributeError(name)


def settings(tmp_path: Path, **changes: Any) -> Settings:
    recipe = {"_target_": "builtins.dict"}
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    config: dict[str, Any] = {
        **dict.fromkeys(RECIPES, recipe),
        "method": {"name": "l2", "criterion": recipe},
        "objectives": {},
        "phases": {
            "train": {"optimizer": sgd, "epochs": 1},
            "finetune": {"optimizer": sgd, "round_steps": 1},
        },
        "study": {"name": "s", "n_trials": 10, "out": str(tmp_path)},
        **changes,
    }
    found = load(config)
    found.study.folder.mkdir(parents=True, exist_ok=True)
    return found


def pretend(plan: Plan, number: int, report: Report) -> Measurement:
    """Quality falls smoothly with the FLOPs removed; two rungs."""
    structure, cost = small_resnet(), Cost(small_resnet())
    kept = plan.counts(structure)
    ratio = cost.macs(kept) / cost.macs(structure.sizes)
    rungs, stop = [], None
    for rung in (1, 2):
        metrics = {
            "accuracy": 0.95 - 0.05 / rung * (1 - ratio) ** 4,
            "loss": 0.1 + (1 - ratio) / rung,
        }
        rungs.append((rung, metrics))
        stop = report(rung, ratio, metrics)
        if stop:
            break
    costs = {"flops": 2.0 * cost.macs(kept), "params": float(cost.params(kept))}
    groups = [group.name for group in structure.groups]
    return Measurement(
        "stopped" if stop else "completed",
        None,
        costs,
        {"flops": ratio, "params": 1.0},
        dict(zip(groups, kept.tolist(), strict=True)),
        tuple(rungs),
        stop or "",
    )


def start(tmp_path: Path) -> optuna.Study:
    study = open_study(settings(tmp_path), ["maximize", "minimize"])
    enqueue_chain(study, SPACE, [context()], [0.6, 0.3, 0.1])
    return study


def run(
    study: optuna.Study, n: int, evaluate: Any = pretend, rules: Rules = RULES
) -> list[FrozenTrial]:
    seen: list[FrozenTrial] = []
    mine = Leases(study, 60.0)
    with mine.leading():
        run_trials(
            Trials(study, SPACE, context(), evaluate, rules, mine, Exchange(study, Path())),
            n,
            seen.append,
        )
    return seen


def test_the_chain_comes_first_large_to_small_then_optuna(tmp_path: Path) -> None:
    study = start(tmp_path)
    found = rows(study, GOALS)
    assert found == []
    run(study, 6)
    found = rows(study, GOALS)
    assert [row.kind for row in found] == ["chain"] * 3 + ["search"] * 3
    ratios = [row.cost_ratio for row in found[:3]]
    assert ratios == sorted(ratios, reverse=True)
    assert all(
        abs(ratio - target) < 0.05 for ratio, target in zip(ratios, (0.6, 0.3, 0.1), strict=True)
    )


def test_a_failed_trial_is_recorded_with_its_reason_and_the_study_goes_on(tmp_path: Path) -> None:
    def fails(plan: Plan, number: int, report: Report) -> Measurement:
        if number == 1:
            raise PlanError("a plan must remove at least one unit")
        if number == 2:
            raise RuntimeError("out of luck")
        return pretend(plan, number, report)

    study = start(tmp_path)
    run(study, 5, fails)
    found = rows(study, GOALS)
    assert [row.state for row in found] == [
        "completed",
        "rejected",
        "failed",
        "completed",
        "completed",
    ]
    assert found[1].reason == "a plan must remove at least one unit"
    assert found[2].reason == "RuntimeError: out of luck"
    assert found[1].quality is None
    assert "out of luck" in study.get_trials()[2].user_attrs[TRACE]


def test_a_full_disk_is_no_trials_fault(tmp_path: Path) -> None:
    def full(plan: Plan, number: int, report: Report) -> Measurement:
        if number == 1:
            raise StorageError("no room")
        return pretend(plan, number, report)

    study = start(tmp_path)
    with pytest.raises(StorageError, match="no room"):
        run(study, 3, full)
    assert study.get_trials()[1].state == optuna.trial.TrialState.WAITING
    run(study, 3)
    assert [row.state for row in rows(study, GOALS)] == ["completed"] * 3


def test_an_infinite_score_fails_the_trial(tmp_path: Path) -> None:
    def bad(plan: Plan, number: int, report: Report) -> Measurement:
        return replace(
            pretend(plan, number, report), rungs=((1, {"accuracy": float("nan"), "loss": 1.0}),)
        )

    study = start(tmp_path)
    run(study, 1, bad)
    row = rows(study, GOALS)[0]
    assert row.state == "failed"
    assert "must be finite" in row.reason


def test_a_rejected_plan_counts_and_has_no_score(tmp_path: Path) -> None:
    def over(plan: Plan, number: int, report: Report) -> Measurement:
        found = pretend(plan, number, lambda *_: None)
        return replace(found, state="rejected", rungs=(), reason="over") if number == 0 else found

    study = start(tmp_path)
    run(study, 2, over)
    found = rows(study, GOALS)
    assert [row.state for row in found] == ["rejected", "completed"]
    assert study.get_trials()[0].state == optuna.trial.TrialState.PRUNED
    assert done(study) == 2


def test_the_chain_is_never_stopped_but_the_search_is(tmp_path: Path) -> None:
    study = start(tmp_path)
    run(study, 6, rules=replace(RULES, stopping=Band(max_drop=1e-6)))
    assert [row.state for row in rows(study, GOALS)] == ["completed"] * 3 + ["stopped"] * 3
    stopped = study.get_trials()[4]
    assert stopped.user_attrs[REASON].startswith("lost")
    assert len(stopped.user_attrs["rungs"]) == 1


def test_a_finished_study_is_extended_not_repeated(tmp_path: Path) -> None:
    run(start(tmp_path), 4)
    again = start(tmp_path)
    assert done(again) == 4
    assert run(again, 4) == []
    assert [trial.number for trial in run(again, 6)] == [4, 5]


def interrupted_at(number: int) -> Callable[..., Measurement]:
    def evaluate(plan: Plan, trial: int, report: Report) -> Measurement:
        if trial == number:
            raise KeyboardInterrupt
        return pretend(plan, trial, report)

    return evaluate


def test_an_interrupted_trial_is_tried_again_and_not_counted(tmp_path: Path) -> None:
    study = start(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(study, 5, interrupted_at(1))
    assert done(study) == 1
    assert study.get_trials()[1].state == optuna.trial.TrialState.WAITING
    run(study, 5)
    found = rows(study, GOALS)
    assert len(found) == 5
    assert sum(row.kind == "chain" for row in found) == 3
    assert study.get_trials(states=(optuna.trial.TrialState.RUNNING,)) == []


def test_a_trial_left_open_by_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    study = start(tmp_path)
    left = study.ask(SPACE.distributions(context()))
    assert reclaim_interrupted(study, Leases(study, 60.0)) == 1
    assert reclaim_interrupted(study, Leases(study, 60.0)) == 0
    run(study, 3)
    again = study.get_trials()[left.number]
    assert (again.params, again.user_attrs[STATE]) == (left.params, "completed")
    assert again.user_attrs[KIND] == "chain"
    assert len(study.get_trials()) == 3


@pytest.mark.parametrize(
    ("number", "storage"),
    [
        (1, None),
        (4, None),
        pytest.param(4, "sqlite:///{}/s.db", marks=pytest.mark.slow),
    ],
)
def test_a_study_killed_in_the_middle_of_a_trial_ends_as_an_undisturbed_one(
    tmp_path: Path, number: int, storage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(name: str) -> optuna.Study:
        place = {"name": "s", "n_trials": 10, "out": str(tmp_path / name)}
        (tmp_path / name).mkdir(exist_ok=True)
        if storage is not None:
            place["storage"] = storage.format(tmp_path / name)
        study = open_study(settings(tmp_path / name, study=place), ["maximize", "minimize"])
        enqueue_chain(study, SPACE, [context()], [0.6, 0.3, 0.1])
        return study

    whole = start(tmp_path / "whole")
    run(whole, 7)
    for name, signalled in (("signal", True), ("kill", False)):
        with monkeypatch.context() as patch:
            if not signalled:
                patch.setattr("orchestrator.search.studies.loop.put_back", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                run(begun(name), 7, interrupted_at(number))
        again = begun(name)
        monkeypatch.setattr(
            leases, "_started", lambda pid, name=name: name
        )  # another process has this number now
        assert reclaim_interrupted(again, Leases(again, 60.0)) == int(not signalled)
        run(again, 7)
        assert [t.params for t in again.get_trials()] == [t.params for t in whole.get_trials()]
        assert [t.values for t in again.get_trials()] == [t.values for t in whole.get_trials()]


@pytest.mark.parametrize("number", [0, 4, 6])
@pytest.mark.parametrize("name", ["TPESampler", "RandomSampler"])
def test_a_study_killed_between_two_parameters_ends_as_an_undisturbed_one(
    tmp_path: Path, number: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"multivariate": True, "n_startup_trials": 5} if name == "TPESampler" else {}
    rules = replace(RULES, sampler=Recipe(f"optuna.samplers.{name}", few))
    whole = start(tmp_path / "whole")
    run(whole, 7, rules=rules)
    for count in (1, 2, len(whole.get_trials()[number].params) - 1):
        suggest = optuna.Trial._suggest

        def dies(
            self: optuna.Trial, *arguments: Any, count: int = count, suggest: Any = suggest
        ) -> Any:
            if self.number == number and len(self.params) == count:
                raise KeyboardInterrupt
            return suggest(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.Trial, "_suggest", dies)
            with pytest.raises(KeyboardInterrupt):
                run(start(tmp_path / str(count)), 7, rules=rules)
        again = start(tmp_path / str(count))
        run(again, 7, rules=rules)
        assert [t.params for t in again.get_trials()] == [t.params for t in whole.get_trials()]


def test_plans_of_trials_that_were_not_told_are_removed_and_foreign_ones_refused(
    tmp_path: Path,
) -> None:
    study = start(tmp_path)
    run(study, 2)
    for number in (0, 2):
        (tmp_path / "trials" / str(number)).mkdir(parents=True)
    remove_orphans(study, tmp_path / "trials")
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["0"]
    (tmp_path / "trials" / "7").mkdir()
    with pytest.raises(DataError, match=r"holds \[7\], and the study has 3 trials"):
        remove_orphans(study, tmp_path / "trials")


def test_the_same_seed_proposes_the_same_trials(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        study = start(tmp_path / name)
        run(study, 7)
        found.append([trial.params for trial in study.get_trials()])
    assert found[0] == found[1]


def test_a_resumed_study_proposes_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    run(whole, 8)
    run(start(tmp_path / "parts"), 5)
    resumed = start(tmp_path / "parts")
    run(resumed, 8)
    assert [trial.params for trial in whole.get_trials()] == [
        trial.params for trial in resumed.get_trials()
    ]


def test_another_search_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    study = start(tmp_path)
    run(study, 1)
    other = settings(tmp_path, method={"name": "l1", "criterion": {"_target_": "builtins.dict"}})
    with pytest.raises(ConfigError, match=r"method.name was 'l2', now 'l1'"):
        open_study(other, ["maximize", "minimize"])
    more = settings(tmp_path, study={"name": "s", "n_trials": 99, "out": str(tmp_path)})
    assert done(open_study(more, ["maximize", "minimize"])) == 1


def test_a_study_of_latencies_whose_targets_were_of_flops_is_refused(tmp_path: Path) -> None:
    """As studies of latencies were before there were targets of latency."""
    latency = settings(tmp_path, objectives={"costs": ["latency_ms"]})
    study = open_study(latency, ["maximize", "minimize"])
    study.ask()
    identity = dict(study.user_attrs[IDENTITY])
    assert identity.pop("target") == "latency_ratio"
    assert "target" not in settings(tmp_path).identity()
    study.set_user_attr(IDENTITY, identity)
    with pytest.raises(ConfigError, match="target"):
        open_study(latency, ["maximize", "minimize"])


def test_a_study_without_trials_binds_nobody(tmp_path: Path) -> None:
    open_study(settings(tmp_path), ["maximize", "minimize"])
    other = settings(tmp_path, method={"name": "l1", "criterion": {"_target_": "builtins.dict"}})
    study = open_study(other, ["maximize", "minimize"])
    assert (
        study.user_attrs["identity"]["method"]["name"] == "l2"
    )  # another process may lead it, and train
    bind_study(study, other)
    assert study.user_attrs["identity"]["method"]["name"] == "l1"


def test_differences_hide_secrets() -> None:
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b was 1, now 2"]
    assert "hunter2" not in differences({"u": "postgresql://me:hunter2@h/db"}, {"u": None})[0]


def test_front_and_candidates_come_from_completed_trials(tmp_path: Path) -> None:
    study = start(tmp_path)
    run(study, 10)
    found = rows(study, GOALS)
    members = front(found, GOALS)
    assert [row.cost for row in members] == sorted((row.cost for row in members), reverse=True)
    assert len({row.cost for row in members}) == len(members)
    chosen = candidates(found, GOALS, 0.0, 3)
    assert len(chosen) == min(3, len(members))
    assert {row.number for row in chosen} <= {row.number for row in members}
    assert [row.cost for row in chosen] == sorted((row.cost for row in chosen), reverse=True)
