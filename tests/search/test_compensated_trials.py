"""Trials whose removal is compensated, and searches that train nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import orchestrator
from lightning_modules.errors import ConfigError
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv
from orchestrator.search.confirmation.ladders import Climber
from orchestrator.search.parts import check_parts
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.search.trials.working import Event, UnitStage, Working
from tests.search.problems import bench, settings_of

UNTRAINED = [
    "method.compensate=true",
    "phases.finetune.round_steps=0",
    "phases.finetune.distillation=null",
]
PREVIEW = ["job=preview", "threads=1", "tracking=none", "data.batch_size=32"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dense baselines of this module stand: each is trained once."""
    return tmp_path_factory.mktemp("home")


def test_a_compensated_model_is_nearer_to_the_dense_one_without_training(
    home: Path, tmp_path: Path
) -> None:
    untrained = ["phases.finetune.round_steps=0", "phases.train.epochs=12"]
    quality = {}
    for compensate in ("true", "false"):
        here = bench(home, tmp_path / compensate, f"method.compensate={compensate}", *untrained)
        measured, _ = here.run(here.propose(0.3))
        assert measured.trained_rounds == 0
        quality[compensate] = measured.metrics["accuracy"]
    assert quality["true"] > quality["false"] + 0.1


def test_momenta_of_fitted_weights_begin_anew(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method.compensate=true")
    structure = here.facts.structure
    working = Working(here.facts.model, structure.full())
    working.optimizer = {
        name: {"momentum_buffer": torch.ones_like(parameter)}
        for name, parameter in working.model.named_parameters()
    }
    stage = UnitStage(UnitPruner(here.lab, here.settings.method), working, structure.sizes // 2)
    stage.prune(working, Event(1.0, 1, hard=True), seed=0)
    consumers = {name.removesuffix(".weight") for name, dim in structure.table if dim == 1}
    fitted = {name for name in consumers if f"{name}.weight" not in working.optimizer}
    assert fitted
    left = dict(working.model.named_parameters())
    for name, state in working.optimizer.items():
        assert state["momentum_buffer"].shape == left[name].shape
    assert "bn1.weight" in working.optimizer


def test_the_dense_model_is_prepared_once_for_all_plans(home: Path, tmp_path: Path) -> None:
    lab = bench(home, tmp_path, "method.compensate=true").lab
    full = lab.facts.structure.full()
    first = lab.compensator(lab.facts.model, full)
    assert lab.compensator(lab.facts.model, full) is first
    with torch.no_grad():
        next(lab.facts.model.parameters()).mul_(1.1)
    assert lab.compensator(lab.facts.model, full) is not first


def test_a_budget_of_training_without_training_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "phases.finetune.round_steps=0", "study.budget=1min")
    with pytest.raises(ConfigError, match=r"nothing is finetuned: take study\.n_trials"):
        check_parts(settings)


def test_single_weights_are_not_compensated(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValidationError), match="`compensate` is for units"):
        settings_of(tmp_path, "method=weight_l1", "method.compensate=true")


def test_a_plain_ladder_needs_compensation_to_differ_from(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValidationError), match=r"take method\.compensate=true"):
        settings_of(tmp_path, "phases.confirm.baselines=[plain]")


@pytest.mark.slow
@pytest.mark.family
def test_a_preview_trains_nothing_and_ends_with_a_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*PREVIEW, "study.name=seen", "search.allocations=6", "model.width=8"]
    assert main(words) == 0, capsys.readouterr().err
    folder = Path("runs/seen")
    trials = read_csv(folder / "trials.csv", TrialRow)
    assert [row.parent for row in trials] == [None] * 8
    plans = [json.loads(path.read_text()) for path in folder.glob("trials/*/plan.json")]
    assert [plan["trained_rounds"] for plan in plans] == [0] * 8
    free = json.loads((folder / "summary.json").read_text())["free"]
    assert set(free) == set(plans[0]["plan"]["kept"])
    assert all(0.0 <= share <= 1.0 for share in free.values())
    curves = json.loads((folder / "errors.json").read_text())
    assert set(curves) == set(free)
    assert 'id="chart-errors"' in (folder / "report.html").read_text()
    front = read_csv(folder / "front.csv", ConfirmedRow)
    dense, *baselines = read_csv(folder / "baselines.csv", ConfirmedRow)
    assert {row.origin for row in baselines} == {"uniform", "plain"}
    assert all(row.test_std == 0.0 for row in front)
    of_ladders = {"uniform": [], "plain": []}
    for row in baselines:
        of_ladders[row.origin].append(row.test_mean)
    assert sum(of_ladders["uniform"]) > sum(of_ladders["plain"])
    assert max(row.test_mean for row in front) > dense.test_mean - 0.05
    (first, *_) = [row for row in front if row.origin == "front"]
    model = folder / "models" / first.name
    assert orchestrator.load_pruned(model)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    replay = ["job=replay", f"job.model={model}", *UNTRAINED, *words[1:]]
    assert main(replay) == 0, capsys.readouterr().err


def test_an_untrained_ladder_cuts_every_model_from_the_dense_one(
    home: Path, tmp_path: Path
) -> None:
    here = bench(home, tmp_path, "method.compensate=true", "phases.finetune.round_steps=0")
    macs = [int(share * here.facts.dense_macs) for share in (0.6, 0.3)]
    climber = Climber(here.lab, here.methods[0], "uniform")
    for target in macs:
        climber.prune(target)
    direct = Climber(here.lab, here.methods[0], "uniform")
    direct.prune(macs[-1])
    pairs = zip(climber.model.parameters(), direct.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
