"""What fails before the search or after it: the front goes on without a model; the dense one is
needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator
from lightning_modules.phases.fit import DivergedError
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, read_csv
from orchestrator.search.confirmation import confirm
from orchestrator.search.confirmation.confirm import Candidate
from orchestrator.search.plans.finished import read_plan
from tests.search.problems import settings_of

SMALL = [
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=2",
    "phases.finetune.round_steps=4",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "phases.confirm.baselines=[uniform]",
    "search.chain.targets=2",
    "threads=1",
    "stopping=never",
    "tracking=none",
]
STUDY = [*SMALL, "study.n_trials=2"]
UNTRAINED = [*STUDY, "made_up={}"]
RUN = Path("runs/digits_small")
Failing = Callable[[Candidate], None]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Failing], None]:
    """Puts something that may raise before each finetuning of the confirmation."""
    whole = confirm.finetuned

    def put(fail: Failing) -> None:
        def finetuned(lab: Any, candidate: Candidate, *rest: Any) -> nn.Module:
            fail(candidate)
            return whole(lab, candidate, *rest)

        monkeypatch.setattr(confirm, "finetuned", finetuned)

    return put


def diverges(*labels: str) -> Failing:
    def fail(candidate: Candidate) -> None:
        if candidate.label in labels:
            raise DivergedError("the training loss became nan at step 3")

    return fail


def summary() -> Any:
    return json.loads((RUN / "summary.json").read_text())


@pytest.mark.slow
def test_what_fails_is_left_out_and_said_and_made_by_the_same_command(
    failing: Callable[[Failing], None], capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "DivergedError: the training loss became nan at step 3"
    failing(diverges("trial-0", "uniform-1"))
    assert main(UNTRAINED) == 0
    said = capsys.readouterr()
    trace = RUN / "confirm" / "trial-0.traceback.txt"
    assert f"trial-0: left out, it failed: {reason}; see {trace}" in said.err
    assert "in fail\n" in trace.read_text()
    assert "baseline uniform" in " ".join(said.out.split())
    assert summary()["failed"] == {"trial-0": reason, "baseline uniform": reason}
    assert [row.trial for row in read_csv(RUN / "front.csv", ConfirmedRow)] == [1]
    assert [row.origin for row in read_csv(RUN / "baselines.csv", ConfirmedRow)] == ["dense"]

    failing(lambda candidate: None)
    assert main(UNTRAINED) == 0
    assert summary()["failed"] == {}
    assert 0 in [row.trial for row in read_csv(RUN / "front.csv", ConfirmedRow)]
    capsys.readouterr()
    assert main(UNTRAINED) == 0
    assert "this study is complete" in capsys.readouterr().out


def test_without_any_confirmed_model_there_is_no_front_and_the_reason_is_said(
    failing: Callable[[Failing], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(diverges("trial-0", "trial-1"))
    assert main(UNTRAINED) == 2
    said = capsys.readouterr().err
    assert "none of 2 is: DivergedError: the training loss became nan at step 3 (2 times)" in said
    assert "Traceback" not in said
    assert not (RUN / "summary.json").exists()


@pytest.mark.slow
def test_a_confirmation_without_memory_is_made_with_half_the_batch_and_replayed_so(
    failing: Callable[[Failing], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[tuple[str, int]] = []

    def fail(candidate: Candidate) -> None:
        tried.append((candidate.label, candidate.accumulate))
        if tried[-1] == ("trial-1", 1):
            torch.empty(2**48)

    failing(fail)
    assert main([*STUDY, "phases.confirm.seeds=[0,1]"]) == 0
    assert [parts for label, parts in tried if label == "trial-1"] == [1, 2, 1, 2]
    assert summary()["failed"] == {}
    model = tmp_path / RUN / "models" / "1"
    assert read_plan(model)["confirmation"]["accumulate"] == 2
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert orchestrator.replay(
        settings_of(tmp_path, *SMALL, "phases.confirm.seeds=[0,1]"), model
    ).identical


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["train", "finetune"])
def test_a_dense_model_that_diverges_ends_the_run_with_what_to_change(
    phase: str, failing: Callable[[Failing], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(diverges("dense"))
    rate = ["phases.train.optimizer.lr=1e20"]
    assert main([*STUDY, *rate] if phase == "train" else UNTRAINED) == 2
    said = capsys.readouterr().err
    assert "of the dense model" in said
    assert f"take a smaller phases.{phase}.optimizer.lr" in said
    assert "Traceback" not in said
