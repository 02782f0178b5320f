"""A user's own LightningModule and LightningDataModule from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from lightning_modules.errors import ConfigError
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, read_csv
from orchestrator.search.directions import task_directions
from orchestrator.settings import Settings
from tests.contracts.own_code import HERE, WORDS, LitTwoTower
from tests.orchestrator.test_tasks_job import SMALL


def settings_of(module: str, quality: str, **more: Any) -> Settings:
    return orchestrator.load_settings(
        {
            "task": "lightning",
            "task.module": {"_target_": f"{HERE}.{module}"},
            "task.network": {"LitItself": "."}.get(module),
            "data": {"_target_": f"{HERE}.PicturesData"},
            "objectives": {"quality": quality, **more},
            "tracking": "none",
        }
    )


def test_the_direction_is_that_of_a_metric_of_the_name_or_of_the_one_logged_under_it() -> None:
    assert task_directions(settings_of("LitTwoTower", "val_f1")) == {"val_f1": "maximize"}
    assert task_directions(settings_of("LitTwoTower", "val_loss")) == {"val_loss": "minimize"}
    assert task_directions(settings_of("LitItself", "val_mae")) == {"val_mae": "minimize"}
    assert task_directions(settings_of("LitItself", "score", direction="maximize")) == {
        "score": "maximize"
    }
    with pytest.raises(ConfigError, match=r"objectives.direction=maximize or minimize"):
        task_directions(settings_of("LitItself", "score"))
    ours = orchestrator.load_settings({"objectives.direction": "minimize", "tracking": "none"})
    with pytest.raises(ConfigError, match=r"as the task says: maximize for 'accuracy'"):
        task_directions(ours)


def test_the_model_of_a_lightning_task_is_the_network_inside_of_it() -> None:
    settings = settings_of("LitTwoTower", "val_f1")
    assert settings.model.target == "lightning_modules.tasks.Whole"
    assert settings.model.arguments["module"].target == f"{HERE}.LitTwoTower"
    assert settings.model_name() == "LitTwoTower"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.network=nett"], "got 'nett'; nearest: net"),
        (["model=resnet_small"], "take model=inside"),
        (["objectives.quality=val_f2"], "objectives.direction=maximize or minimize"),
        (["objectives.quality=f1"], "must log 'f1', the quality"),
        ([f"task.module={{_target_:{HERE}.LitTwoTower,widht:4}}"], "'widht'"),
    ],
)
def test_mistakes_are_told_in_one_message(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {word.partition("=")[0]: word for word in (*WORDS, *SMALL, *words)}
    assert main([*given.values(), "phases.train.epochs=0"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.family
def test_own_code_goes_through_the_search_and_comes_back_whole_or_as_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*WORDS, *SMALL]) == 0
    front = read_csv("runs/case/front.csv", ConfirmedRow)
    folder = tmp_path / front[-1].path
    network = orchestrator.load_pruned(folder)
    whole = orchestrator.load_pruned(folder, whole=True)
    assert type(network).__name__ == "TwoTower"
    assert isinstance(whole, LitTwoTower)
    outputs = network(torch.randn(2, 1, 8, 8), table=torch.randn(2, 4))
    assert outputs["logits"].shape == (2, 3)
    # what lies outside of the network was trained and saved with it
    assert whole.temperature.item() != 1.0
    given = orchestrator.load_pruned(folder, model=LitTwoTower(), whole=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(given.state_dict()[name], tensor)
    assert main([*WORDS, *SMALL, "job=replay", f"job.model={front[-1].path}"]) == 0
