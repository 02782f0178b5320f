"""The optimizer that a user's module brings: `optimizer=own`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch.optim import SGD, lr_scheduler

import orchestrator
from lightning_modules.data.contract import set_up
from lightning_modules.data.loaders import adapted
from lightning_modules.errors import ConfigError
from lightning_modules.phases.carried import Carried
from lightning_modules.phases.fit import OWN, Optimization, fit
from lightning_modules.phases.own_optimizer import own_optimizer
from lightning_modules.tasks import Classification, Whole
from orchestrator.__main__ import main
from tests.contracts.own_code import WORDS, LitTwoTower, PicturesData
from tests.orchestrator.test_tasks_job import SMALL

CPU = torch.device("cpu")


class Rates(Callback):
    """The learning rates of every step, by group."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def rates(optimization: Optimization, steps: int, *callbacks: Callback) -> list[list[float]]:
    torch.manual_seed(0)
    task = Whole(LitTwoTower(lr=0.01)).module
    data = adapted(PicturesData(count=32))
    set_up(data)
    seen = Rates()
    fit(
        task,
        data.train_batches(0),
        optimization,
        rounds=1,
        round_steps=steps,
        device=CPU,
        callbacks=[seen, *callbacks],
    )
    return seen.seen


def test_groups_and_epoch_schedules_are_the_modules_and_a_factor_scales_them_all() -> None:
    carried = Carried()
    seen = rates(Optimization(OWN), 8, carried)
    # two batches make an epoch: the cosine falls over the four epochs that the steps make
    assert [rate for rate, _ in seen] == pytest.approx(
        [0.01, 0.01, 0.00853553, 0.00853553, 0.005, 0.005, 0.00146447, 0.00146447], rel=1e-4
    )
    assert seen[0][1] == pytest.approx(1e-4)
    assert "temperature" in carried.state
    quarter = rates(Optimization(OWN, lr_factor=0.25), 8, Carried(carried.state))
    for scaled, whole in zip(quarter, seen, strict=True):
        assert scaled == pytest.approx([0.25 * rate for rate in whole])


def test_what_the_phases_cannot_step_is_refused_by_name() -> None:
    class Two(LitTwoTower):
        def configure_optimizers(self) -> Any:
            return [SGD(self.net.parameters(), 0.1), torch.optim.Adam([self.temperature])]

    class Plateau(LitTwoTower):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), 0.1)
            schedule = lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}

    class Listed(LitTwoTower):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), 0.1)
            return [optimizer], [lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(ConfigError, match=r"must give one optimizer.* it gives SGD, Adam"):
        own_optimizer(Two())
    with pytest.raises(ConfigError, match=r"ReduceLROnPlateau"):
        own_optimizer(Plateau())
    own_optimizer(Listed(), 0.5)
    with pytest.raises(ConfigError, match=r"Classification has no configure_optimizers"):
        own_optimizer(Classification(torch.nn.Linear(1, 2), 2))


def test_own_is_a_value_of_the_configuration_and_stays_one() -> None:
    settings = orchestrator.load_settings(
        {"phases": {"finetune": {"optimizer": "own"}}, "tracking": "none"}
    )
    assert settings.phases.finetune.own
    assert not settings.phases.train.own
    assert orchestrator.load_settings(settings.plain()).phases.finetune.own
    with pytest.raises(ConfigError, match=r"optimizer=own brings the scheduler"):
        orchestrator.load_settings(
            {
                "phases.finetune": {
                    "optimizer": "own",
                    "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1},
                }
            }
        )


def test_a_task_without_an_optimizer_is_told_before_anything_is_trained(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["phases.finetune.optimizer=own", "tracking=none", "model.width=4"]) == 2
    assert "has no configure_optimizers" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_trains_and_finetunes_with_the_modules_optimizer(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["phases.train.optimizer=own", "phases.finetune.optimizer=own"]
    assert main([*WORDS, *SMALL, *own]) == 0
