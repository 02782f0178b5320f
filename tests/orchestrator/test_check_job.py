"""job=check: one batch through everything, and all faults together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from orchestrator.__main__ import main
from tests.contracts.own_code import WORDS, LitTwoTower, PicturesData
from tests.contracts.task_cases import CASES, overrides

QUICK = ["job=check", "tracking=none", "threads=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Wrong(LitTwoTower):
    """Its loss is not finite, and its validation logs nothing that is asked for."""

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(self(batch) / 0.0, batch["label"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val_acc", self(batch).mean())


class Unsteady:
    """Data of one's own whose augmentation draws from torch's global generator."""

    num_classes = 3

    def __init__(self) -> None:
        self.module = PicturesData()

    def setup(self, stage: str) -> None:
        self.module.setup(stage)

    def train_batches(self, seed: int) -> Any:
        return self.module.train_dataloader()

    ordered_batches = val_dataloader = test_dataloader = lambda self: self.module.val_dataloader()


def test_own_code_is_described_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*WORDS, *QUICK]) == 0
    shown = capsys.readouterr().out
    for words in (
        "the quality is val_f1, larger is better",
        "6 training batches, as {image: float32[16, 1, 8, 8]",
        "table: float32[16, 4]",
        "test data go through test_step",
        "exports with torch.export",
    ):
        assert words in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["classification", *CASES])
def test_every_task_passes(name: str) -> None:
    assert main([*overrides(name), *QUICK]) == 0


def test_all_faults_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "task=lightning",
        f"task.module={{_target_:{__name__}.Wrong}}",
        f"data={{_target_:{__name__}.Unsteady}}",
        "objectives.quality=val_f1",
        "+space.nonsense=3",
    ]
    assert main([*words, *QUICK]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for fault in (
        "configuration:",
        "augmentation: train_batches(0) gives other batches each time",
        "loss: the loss must be one finite number; it is nan",
    ):
        assert fault in said


class Lost(LitTwoTower):
    """A step that fails with an error of its own."""

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        raise KeyError("labels")


def test_an_error_of_ones_own_code_is_a_fault_and_the_rest_is_still_looked_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = f"task.module={{_target_:{__name__}.Lost}}"
    assert main([*(w for w in WORDS if not w.startswith("task.module")), own, *QUICK]) == 2
    said = capsys.readouterr()
    assert "1 of 12 checks found a fault" in said.err
    assert "loss: KeyError: 'labels'" in said.err
    assert "exports with torch.export" in said.out
    assert "not tried" in said.out
