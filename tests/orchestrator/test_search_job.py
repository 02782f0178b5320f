"""The main job on real data, small enough for the fast tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import orchestrator
from lightning_modules.data import digits
from lightning_modules.data.in_memory import InMemory
from lightning_modules.errors import DataError
from orchestrator.__main__ import main
from orchestrator.jobs.shown import size_words
from orchestrator.results.rows import ConfirmedRow, RungRow, TrialRow, read_csv
from orchestrator.search.plans.finished import read_plan

SMALL = [
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=4",
    "phases.finetune.round_steps=8",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "search.chain.targets=3",
    "threads=1",
    "memory_format=contiguous",  # auto measures, and a busy machine may choose otherwise
    "study.n_trials=6",
]
BRIEF = ["phases.confirm.baselines=[]", "tracking=none"]  # where trials are what counts


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small study has been run once."""
    folder = tmp_path_factory.mktemp("home")
    with inside(folder):
        assert main(SMALL) == 0
    return folder


@pytest.fixture
def run(home: Path) -> Path:
    return home / "runs" / "digits_small"


def test_the_files_of_the_contract(run: Path) -> None:
    trials = read_csv(run / "trials.csv", TrialRow)
    front = read_csv(run / "front.csv", ConfirmedRow)
    baselines = read_csv(run / "baselines.csv", ConfirmedRow)
    assert [row.number for row in trials] == list(range(6))
    rungs = read_csv(run / "rungs.csv", RungRow)
    beyond = [row for row in trials if row.state == "completed" and row.rung > 1]
    assert [(row.rung, row.trials) for row in rungs[:1]] == ([(1, len(beyond))] if beyond else [])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rungs"] == [vars(row) for row in rungs]
    assert summary["command"].startswith("python -m orchestrator +experiment=digits_small ")
    assert {row.origin for row in baselines} == {"dense", "uniform", "random", "global"}
    assert 1 <= len([row for row in front if row.origin == "front"]) <= 2
    for row in [*front, *baselines[1:]]:
        assert row.seeds == 2
        assert row.costs["flops"] == 2 * read_plan(Path(run / "models" / row.name))["macs"]
        assert 0.0 < row.ratios["flops"] < 1.0
        assert row.costs["latency_ms"] > 0.0
    assert (run / "pareto.png").read_bytes().startswith(b"\x89PNG")
    for name in ["dense", *[f"trial-{row.trial}" for row in front if row.origin == "front"]]:
        by_class = json.loads((run / "confirm" / f"{name}.json").read_text())["by_class"]
        assert [list(seed) for seed in by_class] == 2 * [[str(digit) for digit in range(10)]]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["width"] == 8
    assert config["phases"]["finetune"]["distillation"]["temperature"] == 3.0


def test_the_page_is_made_anew_from_the_files_and_from_the_study_that_runs(
    home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home, tmp_path / "copy")
    run = tmp_path / "copy" / "runs" / "digits_small"
    at_the_end = (run / "report.html").read_text()
    groups = json.loads((run / "groups.json").read_text())["groups"]
    for row in read_csv(run / "front.csv", ConfirmedRow):
        keep = read_plan(run / "models" / row.name)["keep"]
        for group in groups:
            kept = sum(end - first for first, end in keep[group["name"]]) / group["units"]
            cell = f'"trial":"{row.name}","group":"{group["name"]}","kind":"{group["kind"]}"'
            assert f'{cell},"kept":{float(f"{kept:.4g}")}' in at_the_end
    with inside(tmp_path / "copy"):
        assert main([*SMALL, "job=report"]) == 0
        assert (run / "report.html").read_text() == at_the_end
        tables = ("trials.csv", "front.csv", "baselines.csv", "rungs.csv")
        for name in (*tables, "summary.json", "decisions.json"):
            (run / name).unlink()
        assert main(["study.name=digits_small", "job=report"]) == 0
    content = (run / "report.html").read_text()
    assert "6 trials, 0 confirmed models" in content
    assert 'id="chart-decisions"' in content


def test_the_smallest_model_that_is_about_as_good_as_the_dense_one_is_named(run: Path) -> None:
    smallest = json.loads((run / "summary.json").read_text())["smallest"]
    dense = read_csv(run / "baselines.csv", ConfirmedRow)[0]
    good = {
        row.name: row.cost_ratio
        for row in read_csv(run / "front.csv", ConfirmedRow)
        if dense.test_mean - row.test_mean <= smallest["tolerance"]
    }
    if good:
        assert smallest["trial"] == min(good, key=lambda name: good[name])
        assert smallest["ratio"] == pytest.approx(min(good.values()), rel=1e-3)
    else:
        assert (smallest["trial"], smallest["ratio"]) == (None, None)


def test_baselines_stand_at_the_flops_of_the_front(run: Path) -> None:
    members = read_csv(run / "front.csv", ConfirmedRow)
    front = {row.trial: row for row in members if row.origin == "front"}
    for row in read_csv(run / "baselines.csv", ConfirmedRow):
        if row.trial is None:
            assert (row.origin, row.ratios["flops"]) == ("dense", 1.0)
        else:
            assert row.costs["flops"] <= front[row.trial].costs["flops"]
            assert (
                row.costs["flops"] >= 0.6 * front[row.trial].costs["flops"]
            )  # whole units: at width 8 the last steps are coarse


def test_children_keep_units_of_their_parents_only(run: Path) -> None:
    plans = {int(path.name): read_plan(path) for path in (run / "trials").iterdir()}
    inherited = 0
    for number, document in plans.items():
        parent = document["plan"]["parent"]
        assert document["ancestors"] == (
            [] if parent is None else [*plans[parent]["ancestors"], parent]
        )
        if parent is None:
            continue
        inherited += 1
        assert document["macs"] < plans[parent]["macs"]
        for group, runs in document["keep"].items():
            mine = {unit for first, end in runs for unit in range(first, end)}
            assert mine <= {
                unit for first, end in plans[parent]["keep"][group] for unit in range(first, end)
            }, number
    assert inherited >= 2


def test_a_pruned_model_is_what_was_measured(run: Path, home: Path) -> None:
    row = read_csv(run / "front.csv", ConfirmedRow)[-1]
    model = orchestrator.load_pruned(home / row.path)
    hits = [model(x).argmax(1) == y for x, y, _ in digits().test_dataloader()]
    measured = read_plan(home / row.path)
    seed = str(measured["confirmed_seed"])
    accuracy = measured["confirmed"][seed]["test"]["accuracy"]
    assert float(torch.cat(hits).float().mean()) == pytest.approx(accuracy, abs=1e-6)


def test_a_damaged_model_is_refused(run: Path, tmp_path: Path) -> None:
    row = read_csv(run / "front.csv", ConfirmedRow)[0]
    shutil.copytree(run / "models" / row.name, tmp_path / "m")
    weights = tmp_path / "m" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"weights.safetensors must be a whole safetensors file"):
        orchestrator.load_pruned(tmp_path / "m")


def test_the_second_run_trains_nothing_and_shows_the_front(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(home), pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.jobs.search.prepare", None)
        assert main(SMALL) == 0
    shown = capsys.readouterr().out
    assert "this study is complete" in shown
    assert "front.csv" in shown


def test_mlflow_has_a_parent_and_a_child_per_trial_with_the_columns(home: Path, run: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
    kinds = {run.info.run_id: run.data.tags["kind"] for run in runs}
    (parent,) = [run for run in runs if run.data.tags["kind"] == "study"]
    children = [run for run in runs if run.data.tags["kind"] == "trial"]
    trials = read_csv(run / "trials.csv", TrialRow)
    members = read_csv(run / "front.csv", ConfirmedRow)
    front = {row.trial: row for row in members if row.origin == "front"}
    assert len(children) == len(trials)
    for child in children:
        tags = child.data.tags
        metrics = child.data.metrics
        number = int(tags["trial_number"])
        row = trials[number]
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["state"] == row.state
        assert {"study", "model", "data", "method", "criterion", "seed"} <= set(tags)
        assert metrics["flops_ratio"] == pytest.approx(row.ratios["flops"], rel=1e-4)
        assert metrics["quality"] == pytest.approx(row.quality, rel=1e-4)
        assert not set(metrics) & set(child.data.params)
        size = size_words(row.ratios["flops"], "flops")
        assert child.info.run_name == f"{number:03d} l2 {size}"
        assert tags["on_front"] == str(number in front).lower()
        if number in front:
            mean = pytest.approx(front[number].test_mean, rel=1e-4)
            assert metrics["test_accuracy"] == mean
        names = {found.path for found in client.list_artifacts(child.info.run_id)}
        assert {"plan.json", "groups.json"} <= names
        assert client.get_metric_history(child.info.run_id, "val_loss")
    others = [run.data.tags["origin"] for run in runs if kinds[run.info.run_id] == "baseline"]
    confirmed = read_csv(run / "baselines.csv", ConfirmedRow)
    assert sorted(others) == sorted([row.origin for row in confirmed])
    names = {found.path for found in client.list_artifacts(parent.info.run_id)}
    assert {"pareto.png", "report.html", "front.csv", "baselines.csv", "front.json"} <= names


def test_more_trials_continue_and_other_settings_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home, tmp_path / "copy")
    with inside(tmp_path / "copy"):
        before = read_csv("runs/digits_small/trials.csv", TrialRow)
        assert main([*SMALL[:-1], *BRIEF, "study.n_trials=7"]) == 0
        after = read_csv("runs/digits_small/trials.csv", TrialRow)
        capsys.readouterr()
        assert main([*SMALL, "method=l1"]) == 2
    assert after[:6] == before
    assert len(after) == 7
    assert "method.name was 'l2', now 'l1'" in capsys.readouterr().err


def timeless(row: ConfirmedRow) -> ConfirmedRow:
    """A row without what a clock says."""
    costs, ratios = (
        {name: value for name, value in values.items() if name != "latency_ms"}
        for values in (row.costs, row.ratios)
    )
    return replace(row, costs=costs, ratios=ratios, latency_iqr_ms=None)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    home: Path, run: Path, tmp_path: Path
) -> None:
    with inside(tmp_path):
        assert main([*SMALL, "tracking=none"]) == 0
    again = tmp_path / "runs" / "digits_small"
    for path in sorted((run / "trials").glob("*/weights.safetensors")):
        assert path.read_bytes() == (again / "trials" / path.parent.name / path.name).read_bytes()
    for name in ("front.csv", "baselines.csv"):
        rows = [[timeless(row) for row in read_csv(at / name, ConfirmedRow)] for at in (run, again)]
        assert rows[0] == rows[1]


def test_the_dense_baseline_is_shared_between_studies(home: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in (home / "baselines").rglob("*") if path.is_file()
    }
    with inside(home):
        few = ["study.n_trials=2", "phases.confirm.max_models=1"]
        assert main([*SMALL, *BRIEF, *few, "study.name=other", "space=uniform"]) == 0
    after = {
        path: path.stat().st_mtime_ns for path in (home / "baselines").rglob("*") if path.is_file()
    }
    assert before == after


def test_test_data_is_not_touched_before_confirmation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TouchedError(Exception):
        pass

    def touch(self: InMemory) -> None:
        raise TouchedError

    monkeypatch.setattr(InMemory, "test_dataloader", touch)
    brief = ["study.n_trials=3", "stopping=never", "phases.train.epochs=1", "tracking=none"]
    with inside(tmp_path):
        assert main([*SMALL, *brief]) == 2  # confirmation is where it ends
    assert len(list((tmp_path / "runs" / "digits_small" / "trials").iterdir())) >= 3
    traces = list((tmp_path / "runs" / "digits_small").glob("confirm/*"))
    assert traces
    assert all(path.suffix == ".txt" and "TouchedError" in path.read_text() for path in traces)


def test_without_lineage_every_trial_begins_from_the_dense_model(tmp_path: Path) -> None:
    with inside(tmp_path):
        assert (
            main(
                [
                    *SMALL,
                    *BRIEF,
                    "made_up={}",
                    "search.lineage=false",
                    "study.n_trials=4",
                    "space=per_group",
                ]
            )
            == 0
        )
    trials = read_csv(tmp_path / "runs" / "digits_small" / "trials.csv", TrialRow)
    assert {row.parent for row in trials} == {None}


def test_a_budget_is_kept_before_training(tmp_path: Path) -> None:
    budget = ["objectives.bounds={flops_ratio: {most: 0.3}}", "space=per_group"]
    with inside(tmp_path):
        assert main([*SMALL, *BRIEF, "made_up={}", *budget, "study.n_trials=8"]) == 0
    trials = read_csv(tmp_path / "runs" / "digits_small" / "trials.csv", TrialRow)
    assert {row.state for row in trials} >= {"completed", "rejected"}
    for row in trials:
        if "empties" in row.reason:
            assert row.state == "rejected"
            continue
        assert row.ratios["flops"] is not None
        assert (row.ratios["flops"] <= 0.3) == (row.state != "rejected")
        if row.state == "rejected":
            assert row.rung == 0
            assert "is over objectives.bounds.flops_ratio.most 0.3" in row.reason


@pytest.mark.slow
def test_three_objectives_and_latency(tmp_path: Path) -> None:
    with inside(tmp_path):
        common = [*SMALL, *BRIEF, "study.n_trials=3"]
        assert main([*common, "study.name=three", "objectives=quality_flops_params"]) == 0
        assert main([*common, "study.name=fast", "objectives=quality_latency"]) == 0
    assert (tmp_path / "runs" / "three" / "front.csv").exists()
    assert len(read_csv(tmp_path / "runs" / "fast" / "front.csv", ConfirmedRow)) >= 1


def test_the_dense_model_as_given_is_told_beside_the_finetuned_one(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert 0.5 < summary["dense_as_given"] <= 1.0
