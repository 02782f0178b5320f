"""A study that finetunes and begins with a preview, through the whole command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_modules.pruning.structure import Counts
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv
from orchestrator.search.plans.finished import read_plan
from tests.orchestrator.test_warm_start_job import SMALL, stored, summary, trials

QUICK = ["search.chain.targets=3", "search.allocations=0"]
SEEN = [*SMALL, "job=preview", "study.name=seen", "study.n_trials=3", *QUICK]
SEEN.remove("phases.finetune.round_steps=6")
AFTER = [*SMALL, "study.name=after", "search.warm_start=seen", "stopping=never"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a preview."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(SEEN) == 0
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(home, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def kept(study: str, trials: int) -> Counts:
    """Units per group of the first so many trials; shape (trials, groups)."""
    rows = []
    for number in range(trials):
        document = read_plan(Path(f"runs/{study}/trials/{number}"))
        rows.append(list(document["lineage"]["links"][-1]["units"].values()))
    return np.array(rows)


def follows(step: int = 1) -> None:
    """Each of the preview's three targets has its allocation, filled up to the target.

    A preview without a search has allocations each within the one before.
    """
    seen = kept("seen", 3)
    after = kept("after", 2 * step + 1)[::step]
    assert (after >= seen).all()
    assert (after[1:] <= seen[:-1]).all()
    assert (after - seen).sum() <= 0.1 * seen.sum()


def told(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The message with which the study is refused."""
    capsys.readouterr()
    assert main([*AFTER, *overrides]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def rewrite(change: Callable[[dict[str, Any]], None]) -> None:
    """Change every plan of the preview."""
    for path in Path("runs/seen/trials").glob("*/plan.json"):
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))


@pytest.mark.usefixtures("here")
def test_the_chain_follows_its_allocations_and_trains_them_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*AFTER, "study.n_trials=5"]) == 0
    assert "warm start: 3 allocations of preview seen" in capsys.readouterr().err
    rows = trials("after")
    assert [row.kind for row in rows] == ["chain"] * 3 + ["search"] * 2
    assert [row.parent for row in rows[:3]] == [None, 0, 1]
    follows()
    assert summary("after")["taken_over"] == 0
    assert all(trial.params for trial in stored("after"))
    # continued without the preview
    shutil.rmtree("runs/seen")
    assert main([*AFTER, "study.n_trials=7"]) == 0
    assert len(trials("after")) == 7


@pytest.mark.usefixtures("here")
def test_targets_between_its_models_are_shared_out_between_them() -> None:
    assert main([*AFTER, "study.n_trials=5", "search.chain.targets=5", "method=obs"]) == 0
    between = kept("after", 5)
    assert (np.diff(between, axis=0) <= 0).all()
    follows(step=2)
    seen = kept("seen", 3)
    assert (between[1] >= seen[1]).all()
    assert (between[3] >= seen[2]).all()


@pytest.mark.usefixtures("here")
def test_a_chain_under_a_budget_follows_it_too() -> None:
    assert main([*AFTER, "study.budget=3epochs", "search.chain.most_epochs=1"]) == 0
    rows = [row for row in trials("after") if row.kind == "chain"]
    assert len(rows) == 3
    follows()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "needs the same model, data and training; seed was 0, now 1"),
        (["model.width=4"], "model.width was 8, now 4. Give the values it had"),
        (["data=digits_rgb"], "needs the same model, data and training; data."),
        (["phases.train.epochs=4"], "phases.train.epochs was 3, now 4"),
        (["method.depth=true"], "method.depth was False, now True"),
        (["space=per_group"], "seen is a preview, which says how a FLOPs target is shared out"),
        (
            ["method=weight_l1", "objectives=quality_effective_flops"],
            "this study's method 'weight_l1' sets single weights to zero",
        ),
    ],
)
def test_what_a_preview_cannot_begin_is_told_before_anything_is_paid_for(
    overrides: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.jobs.search.prepare", None)
    assert message in told(capsys, *overrides)


@pytest.mark.usefixtures("here")
def test_a_preview_of_single_weights_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def on_weights(document: dict[str, Any]) -> None:
        for method in document["lineage"]["methods"].values():
            method["granularity"] = "weight"

    rewrite(on_weights)
    assert "its method 'obs' sets single weights to zero" in told(capsys)


@pytest.mark.usefixtures("here")
def test_other_dense_weights_and_other_groups_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def first_group_gone(document: dict[str, Any]) -> None:
        document["keep"].pop(next(iter(document["keep"])))

    rewrite(first_group_gone)
    assert "search.warm_start=seen must have the groups of this model" in told(capsys)

    def other_weights(document: dict[str, Any]) -> None:
        document["lineage"]["dense"] = "0" * 64

    rewrite(other_weights)
    assert "begins with other dense weights: 000000000000 there" in told(capsys)


@pytest.mark.usefixtures("here")
def test_a_preview_without_a_model_within_its_bounds_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bound = "objectives.bounds={accuracy: {least: 0.999}}"
    assert main([*SEEN, "study.name=none", bound]) == 2
    assert "none of whose trials is within its bounds" in told(capsys, "search.warm_start=none")


@pytest.mark.slow
@pytest.mark.family
def test_a_real_preview_a_search_from_it_and_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = [override for override in AFTER if not override.startswith("made_up")]
    assert main([override for override in SEEN if not override.startswith("made_up")]) == 0
    assert main([*trained, "study.n_trials=4"]) == 0
    follows()
    front = read_csv("runs/after/front.csv", ConfirmedRow)
    models = [row.trial for row in front if row.origin == "front"]
    assert models
    replay = ["job=replay", f"job.model=runs/after/models/{models[-1]}"]
    assert main([*trained, *replay]) == 0
    rows = read_csv("runs/after/trials.csv", TrialRow)
    assert rows[1].parent == 0
