"""Looking before paying."""

from __future__ import annotations

from pathlib import Path

import pytest

import orchestrator
from orchestrator.__main__ import main


def test_inspect_shows_groups_skips_costs_and_duration_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["+experiment=digits_small", "job=inspect", "threads=1"]) == 0
    shown = capsys.readouterr().out
    for word in ("stages.1.0.conv1", "dense FLOPs", "prunable", "it is the model's output", "fc", "expected duration"):
        assert word in shown
    assert list(tmp_path.iterdir()) == []


def test_inspect_from_python_gives_the_numbers() -> None:
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    settings = orchestrator.load_settings(
        {
            "model": {"_target_": "lightning_modules.models.SmallResNet", "num_classes": 10},
            "data": {"_target_": "lightning_modules.data.digits"},
            "task": {"_target_": "lightning_modules.tasks.Classification"},
            "method": {"name": "l2", "criterion": {"_target_": "lightning_modules.pruning.criteria.Magnitude"}},
            "space": {"_target_": "orchestrator.search.space.Allocation", "offset": 0.0},
            "sampler": {"_target_": "optuna.samplers.RandomSampler"},
            "stopping": {"_target_": "orchestrator.search.stopping.Never"},
            "objectives": {},
            "phases": {
                "train": {"optimizer": sgd, "epochs": 1},
                "finetune": {"optimizer": sgd, "unit_steps": 1, "units": 1},
            },
            "tracking": {"_target_": "orchestrator.tracking.none.NoTracker"},
            "job": {"_target_": "orchestrator.jobs.inspect.inspect"},
            "study": {"name": "s", "n_trials": 3},
        }
    )
    found = orchestrator.inspect(settings)
    assert found.macs == 763_520
    assert found.params == sum(p.numel() for p in settings.model.build().parameters())
    assert found.prunable_macs_fraction == 1.0
    assert found.dimensions == 5
    assert [group.size for group in found.structure.groups] == [16, 16, 32, 32, 64, 64]
    assert found.total_seconds > 0.0
