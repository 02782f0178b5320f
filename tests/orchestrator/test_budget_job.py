"""`study.budget` through the whole command on the small digits problem."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv
from orchestrator.search.pace.budget import Pace
from orchestrator.search.plans.finished import read_plan

SMALL = [
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=3",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "search.chain.targets=3",
    "threads=1",
    "tracking=none",
]
RUN = Path("runs/digits_small")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trials() -> list[TrialRow]:
    return read_csv(RUN / "trials.csv", TrialRow)


def summary() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RUN / "summary.json").read_text())
    return found


def results() -> dict[str, tuple[dict[str, Any], bytes]]:
    """Plan and weights of every finished trial."""
    return {
        path.name: (read_plan(path)["plan"], (path / "weights.safetensors").read_bytes())
        for path in sorted((RUN / "trials").iterdir())
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.budget=20"], "study.budget: must be a number and a unit: 90s, 20min"),
        (["study.budget=-5min"], "study.budget: must be a number and a unit"),
        (["study.budget=15trials"], "take study.n_trials; got '15trials'"),
    ],
)
def test_a_wrong_budget_is_told_within_a_second(
    overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.process_time()  # other work on the machine does not count
    assert main([*SMALL, *overrides]) == 2
    assert time.process_time() - begin < 3.0
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not RUN.exists()


@pytest.mark.slow
@pytest.mark.family
def test_epochs_are_spent_alike_twice_and_after_a_kill_and_a_larger_budget_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*SMALL, "phases.confirm.baselines=[]", "search.chain.most_epochs=2", "stopping=never"]
    command = [*common, "study.budget=8epochs"]
    assert main(command) == 0
    whole, rows = results(), trials()
    steps = [plan["timing"]["round_steps"] for plan, _ in whole.values()]
    per_epoch = 2 * max(steps) / 2  # two units in a rung of two epochs
    assert len(rows) >= 4
    assert [row.kind for row in rows] == ["chain"] * 3 + ["search"] * (len(rows) - 3)
    spent = [
        plan["timing"]["round_steps"] * read_plan(RUN / "trials" / name)["trained_rounds"]
        for name, (plan, _) in whole.items()
    ]
    assert max(spent) <= 2 * per_epoch
    assert 6 * per_epoch < sum(spent) <= 8 * per_epoch
    assert summary()["budget"] == "8epochs"
    assert summary()["baselines_left_out"] == []

    # at once when it is complete, also for less of it
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.jobs.search.prepare", None)
        capsys.readouterr()
        assert main(command) == 0
        assert main([*common, "study.budget=5epochs"]) == 0
    assert "this study is complete; more time: study.budget=..." in capsys.readouterr().out

    # the exported model is replayed with the rounds it was confirmed with
    folder = next((RUN / "models").iterdir())
    assert main([*command, "job=replay", f"job.model={folder}"]) == 0

    # killed twice, in the chain and behind it
    (tmp_path / "runs").rename(tmp_path / "whole")
    calls = iter(range(100))
    original = Pace.__call__

    def dies(self: Pace, ratio: float, units: int) -> int:
        if next(calls) in (1, 4):
            raise KeyboardInterrupt
        return original(self, ratio, units)

    with monkeypatch.context() as patch:
        patch.setattr(Pace, "__call__", dies)
        assert main(command) == 130
        assert main(command) == 130
    assert main(command) == 0
    assert results() == whole

    assert main([*common, "study.budget=11epochs"]) == 0
    more = results()
    assert len(more) > len(whole)
    assert {name: more[name] for name in whole} == whole


@pytest.mark.slow
def test_trials_that_train_nothing_end_a_budget_in_epochs_too() -> None:
    bound = ["objectives.bounds={flops_ratio: {most: 0.0015}}", "space=per_group", "space.high=0.3"]
    tight = ["objectives.bounds={flops_ratio: {most: 0.2}}", "space=per_group", "space.high=0.3"]
    assert main([*SMALL, "made_up={}", *bound, "study.budget=4epochs"]) == 2
    assert (
        main([*SMALL, "made_up={}", *tight, "study.budget=4epochs", "study.name=tight"]) == 2
    )  # nothing came through
    study = optuna.load_study(
        study_name="tight", storage=JournalStorage(JournalFileBackend("runs/tight/study.journal"))
    )
    assert 3 < len(study.get_trials(deepcopy=False)) < 80


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(["method=l2"], marks=pytest.mark.family),
        ["method=weight_l1"],
        ["method=hybrid"],
        ["method=nm_2_4", "space=patterns"],
        ["method=soft_filter"],
    ],
)
def test_a_budget_in_seconds_is_kept_with_the_dense_model_trained_first(
    method: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    budget = 30.0
    command = [
        *SMALL,
        *method,
        f"study.budget={budget:.0f}s",
        "search.chain.most_epochs=4",
        "phases.confirm.max_models=6",
    ]
    begin = time.perf_counter()
    assert main(command) == 0
    took = time.perf_counter() - begin
    assert took <= 1.5 * budget
    assert took >= 0.5 * budget
    assert len(trials()) >= 3
    left_out = summary()["baselines_left_out"]
    there = {row.origin for row in read_csv(RUN / "baselines.csv", ConfirmedRow)}
    assert there == {"dense", "uniform", "random", "global"} - set(left_out)
    shown = " ".join(capsys.readouterr().out.split())
    assert ("would not have ended within" in shown) == bool(left_out)
    folder = next(
        (RUN / "models").iterdir()
    )  # confirmed with rounds of the length that there was time for
    assert read_plan(folder)["confirmation"]["round_steps"] >= 16  # never fewer, however late it is
    assert (
        read_plan(folder)["plan"]["timing"]["mixed"] == 0
    )  # nobody learns the data by heart in four epochs
    assert main([*command, "job=replay", f"job.model={folder}"]) == 0


@pytest.mark.slow
def test_more_time_goes_on_and_too_little_says_what_took_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SMALL, "phases.train.epochs=40", "study.budget=1s"]) == 2
    assert "study.budget=1s must leave time for the search" in capsys.readouterr().err
    assert main([*SMALL, "study.budget=10s"]) == 0
    before = results()
    begin = time.perf_counter()
    assert main([*SMALL, "study.budget=25s", "search.chain.most_epochs=30"]) == 0
    assert time.perf_counter() - begin < 25.0
    after = results()
    assert {name: after[name] for name in before} == before
    assert len(after) >= len(before)
