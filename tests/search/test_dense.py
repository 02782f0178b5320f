"""The dense baseline: one network per study, trained by one process, told apart by its weights."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.data.contract import set_up
from lightning_modules.errors import ConfigError, DataError
from lightning_modules.models import SmallResNet
from orchestrator.jobs.checked import search
from orchestrator.search.lab.dense import RECORD, WEIGHTS, dense_folder
from orchestrator.settings import Settings
from tests.forked import ready
from tests.search.problems import lab_of, settings_of

QUICK = [
    "study.n_trials=2",
    "search.chain.targets=2",
    "phases.train.epochs=0",
    "phases.confirm.baselines=[]",
    "phases.confirm.max_models=1",
    "phases.confirm.rounds=1",
]


def checkpoint(path: Path, seed: int) -> Path:
    """Untrained weights of the model of the tests."""
    torch.manual_seed(seed)
    save_file(SmallResNet(num_classes=10, in_channels=1, width=8, blocks=1).state_dict(), path)
    return path


def test_a_study_refuses_a_checkpoint_that_was_replaced_under_its_path(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "weights.safetensors", 0)
    words = [*QUICK, f"phases.train.checkpoint={path}"]
    search(settings_of(tmp_path, *words))
    checkpoint(path, 1)
    with pytest.raises(
        DataError, match=r"a study prunes one dense network; .* study\.name another value"
    ):
        search(settings_of(tmp_path, *words, "study.n_trials=3"))


def test_what_is_measured_on_dense_weights_is_kept_under_their_digest(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "weights.safetensors", 0)
    words = ["phases.train.epochs=0", f"phases.train.checkpoint={path}"]
    first = lab_of(tmp_path, *words).facts.dense_digest
    checkpoint(path, 1)
    assert lab_of(tmp_path, *words).facts.dense_digest != first


def _trained(settings: Settings, log: str) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    data = settings.data.build()
    set_up(data)
    from orchestrator.progress import Progress
    from orchestrator.search.lab.prepare import prepare

    prepare(settings, data, Progress())


@pytest.mark.slow
@pytest.mark.family
def test_of_two_processes_one_trains_the_dense_model(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    logs = [tmp_path / f"{name}.log" for name in "ab"]
    processes = [ready().Process(target=_trained, args=(settings, str(log))) for log in logs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, [log.read_text() for log in logs]
    trained = [log for log in logs if "epoch 1:" in log.read_text()]
    assert len(trained) == 1
    folder = dense_folder(settings)
    assert (folder / RECORD).exists()
    assert load_file(folder / WEIGHTS)


def test_a_study_of_an_older_version_is_refused_with_one_message(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, *QUICK, "made_up={}")
    study = search(settings).folder
    journal = study / "study.journal"
    journal.write_text(re.sub(r'("version": ?)\d+', r"\g<1>1", journal.read_text()))
    with pytest.raises(
        ConfigError, match=r"was made by an older version, .* give study.name another value"
    ):
        search(settings_of(tmp_path, *QUICK, "made_up={}", "study.n_trials=3"))
