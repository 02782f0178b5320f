"""Objectives, bounds and samplers through the whole job, on real data."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv

TINY = [
    "made_up={}",
    "+experiment=digits_small",
    "model.width=8",
    "phases.train.epochs=3",
    "phases.finetune.round_steps=6",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "phases.confirm.baselines=[]",
    "search.chain.targets=2",
    "stopping=never",
    "threads=1",
    "study.name=tiny",
    "study.n_trials=5",
]
RUN = Path("runs/tiny")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_latency_study_has_the_latency_front(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "tracking=none", "objectives=quality_latency"]) == 0
    trials, front = (
        read_csv(RUN / "trials.csv", TrialRow),
        read_csv(RUN / "front.csv", ConfirmedRow),
    )
    assert {row.axis for row in [*trials, *front]} == {"latency_ms"}
    (dense,) = Path("baselines").glob("latency-dense-*.json")
    whole = json.loads(dense.read_text())["latency_ms"]
    for row in trials:
        assert row.costs["latency_ms"] is not None
        assert row.cost_ratio == pytest.approx(row.costs["latency_ms"] / whole)
    assert json.loads((RUN / "summary.json").read_text())["reference"] == {
        "accuracy": 0.5,
        "latency_ms_ratio": 1.0,
    }
    said = capsys.readouterr()
    assert "of the latency" in said.err
    assert "FLOPs left" in said.out
    assert "plans it has not seen" in said.err


def test_targets_of_a_latency_study_are_ratios_of_the_estimated_latency() -> None:
    command = [*TINY, "tracking=none", "objectives=quality_latency", "search.lineage=false"]
    assert main(command) == 0
    asked = targets_of(RUN)
    assert asked
    rows = {row.number: row for row in read_csv(RUN / "trials.csv", TrialRow)}
    for number, ratio in asked.items():
        assert rows[number].ratios["estimated_latency_ms"] <= ratio + 1e-6
    # the tables are read back by another study: nothing is measured again
    kept = {path: path.stat().st_mtime_ns for path in Path("baselines").glob("latency-*.json")}
    assert len(kept) > 3
    assert main([*command, "study.name=other"]) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in Path("baselines").glob("latency-*")}


def targets_of(folder: Path) -> dict[int, float]:
    """The targets of the completed trials, by their numbers."""
    (study,) = optuna.get_all_study_names(storage_of(folder))
    targets = {}
    for trial in optuna.load_study(study_name=study, storage=storage_of(folder)).trials:
        assert "flops_ratio" not in trial.params
        if trial.state == optuna.trial.TrialState.COMPLETE:
            targets[trial.number] = trial.params["latency_ratio"]
    return targets


def storage_of(folder: Path) -> optuna.storages.JournalStorage:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.storages.JournalStorage(backend)


@pytest.mark.slow
@pytest.mark.family
def test_four_objectives_end_to_end_and_in_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    bounds = "objectives.bounds={accuracy: {least: 0.73}, size_mb: {most: 0.06}}"
    objectives = ["objectives.metrics=[loss]", "objectives.costs=[estimated_latency_ms,size_mb]"]
    assert (
        main([*TINY, *objectives, bounds, "space=uniform", "sampler=nsga2", "study.n_trials=8"])
        == 0
    )
    said = capsys.readouterr()
    assert "plans it has not seen" in said.err
    trials, front = (
        read_csv(RUN / "trials.csv", TrialRow),
        read_csv(RUN / "front.csv", ConfirmedRow),
    )
    assert (
        {"completed", "infeasible"}
        <= {row.state for row in trials}
        <= {"completed", "infeasible", "rejected"}
    )
    for row in trials:
        if row.state == "infeasible":
            assert "accuracy" in row.reason
            assert row.quality is not None
            assert row.quality < 0.73
        if row.state == "rejected":
            assert row.reason.startswith(("size_mb", "a plan must remove something"))
            assert row.rung == 0
        if row.state == "completed":
            assert row.metrics["loss"] == row.loss
    infeasible = {row.number for row in trials if row.state != "completed"}
    assert front
    assert not infeasible & {row.trial for row in front}
    assert all(row.costs["size_mb"] <= 0.06 for row in front)
    assert [row.costs["estimated_latency_ms"] for row in front] == sorted(
        (r.costs["estimated_latency_ms"] for r in front), reverse=True
    )
    summary = json.loads((RUN / "summary.json").read_text())
    assert list(summary["reference"]) == [
        "accuracy",
        "loss",
        "estimated_latency_ms_ratio",
        "size_mb_ratio",
    ]
    assert summary["hypervolume"] >= 0.0
    assert 0.0 < summary["latency_model_error"] < 0.5
    client = MlflowClient("sqlite:///mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
    assert summary["reference"]["size_mb_ratio"] == 1.0
    states = sorted(run.data.tags["state"] for run in runs if run.data.tags["kind"] == "trial")
    assert states == sorted(row.state for row in trials)


def test_when_no_trial_keeps_the_bounds_the_reason_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(
            [
                *TINY,
                "tracking=none",
                "objectives.bounds={accuracy: {least: 95}}",
                "study.n_trials=2",
            ]
        )
        == 2
    )
    assert "none of 2 is: accuracy" in (said := capsys.readouterr().err)
    assert "is under objectives.bounds.accuracy.least 95" in said


SMALL_SPACE = [
    "space=uniform",
    "space.levels=3",
    "space.steps=[1,1]",
    "space.shapes=[one_shot]",
    "space.rounds=[1,1]",
]


@pytest.mark.slow
def test_brute_force_ends_early_and_a_re_run_knows_that_it_is_complete(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*TINY, "tracking=none", "sampler=brute_force", *SMALL_SPACE, "study.n_trials=50"]
    assert main([*command, "job=inspect"]) == 0
    assert "| combinations" in capsys.readouterr().out
    assert main(command) == 0
    assert "every combination of the space was tried, 3 trials in all" in capsys.readouterr().err
    trials = read_csv(RUN / "trials.csv", TrialRow)
    assert len(trials) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.jobs.search.prepare", None)
        assert main(command) == 0
    assert "this study is complete; every combination was tried" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sampler_from_a_local_folder_runs_end_to_end(tmp_path: Path) -> None:
    package = tmp_path / "registry" / "samplers" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import Mine\n\n__all__ = ['Mine']\n")
    (package / "inner.py").write_text(
        "import optuna\n\n\nclass Mine(optuna.samplers.RandomSampler):\n    pass\n"
    )
    ladders = ["phases.confirm.baselines=[uniform,random,global]"]
    hub = [
        "sampler=hub",
        "sampler.package=samplers/mine",
        f"sampler.registry={tmp_path / 'registry'}",
    ]
    assert main([*TINY, "tracking=none", *ladders, *hub]) == 0
    assert len(read_csv(RUN / "baselines.csv", ConfirmedRow)) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler=random", "sampler._target_=optuna.samplers.CmaEsSampler"], "multi-objective"),
        (["sampler=brute_force"], r"these are continuous: flops_ratio, equal_loss, offset.conv1"),
        (
            ["sampler=hub", "sampler.package=samplers/x", "sampler.registry=/nowhere"],
            "there is no /nowhere/samplers/x",
        ),
        (
            ["objectives.bounds={latency_ms: {most: 1e-6}}"],
            "objectives.bounds.latency_ms.most must be at least",
        ),
        (["space.levels=1"], "space.levels must be null"),
    ],
)
@pytest.mark.parametrize("job", ["search", "inspect"])
def test_what_cannot_work_is_refused_before_anything_is_trained(
    job: str, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "tracking=none", f"job={job}", *overrides]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert message in said
    assert not list(Path().glob("baselines/*/dense.json"))
