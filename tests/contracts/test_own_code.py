"""A LightningModule and a LightningDataModule as people have them, seen by the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.data.contract import check_data, set_up
from lightning_modules.data.loaders import adapted
from lightning_modules.errors import ConfigError
from lightning_modules.phases.fit import Optimization, evaluate, fit, run_test_steps
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import prefixed, some_of
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Whole
from lightning_modules.tasks.contract import (
    build_task,
    check_outputs,
    check_task,
    check_training,
    inputs_of,
    step_loss,
)
from lightning_modules.tasks.held import held_directions
from lightning_modules.tasks.metrics import under_names_of
from tests.contracts.own_code import LitItself, LitTwoTower, PicturesData

CPU = torch.device("cpu")
TASK = Recipe("lightning_modules.tasks.lightning", {"module": None})


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pictures(**arguments: Any) -> Any:
    data = adapted(PicturesData(**arguments))
    set_up(data)
    check_data(data)
    return data


def test_a_whole_has_the_names_of_its_module_and_calls_its_network() -> None:
    module = LitTwoTower()
    whole = Whole(module)
    assert whole.path == "net"
    assert list(whole.state_dict()) == list(module.state_dict())
    inputs = (torch.randn(2, 1, 8, 8), torch.randn(2, 4))
    torch.testing.assert_close(whole(*inputs), module.net(*inputs))
    whole.eval()
    assert not module.training
    assert not module.net.training


def test_a_copy_of_a_whole_shares_nothing_and_may_have_run_before() -> None:
    whole = Whole(LitTwoTower())
    batch = next(iter(pictures().train_batches(0)))
    step_loss(whole.module, batch).backward()
    assert whole.module.last_confidence.grad_fn is not None
    twin = copy_of(whole)
    assert twin.module is not whole.module
    assert twin.network is twin.module.net
    with torch.no_grad():
        twin.module.temperature.fill_(7.0)
    assert twin.state_dict()["temperature"] == 7.0
    assert whole.state_dict()["temperature"] == 1.0


def test_a_smaller_whole_is_trained_validated_and_tested_by_the_modules_own_steps() -> None:
    whole = Whole(LitTwoTower())
    data = pictures()
    task = build_task(TASK, whole, data)
    assert task is whole.module
    batch = next(iter(data.val_dataloader()))
    check_task(task)
    check_outputs(task, batch)
    inputs = inputs_of(task, batch)
    assert set(inputs.kwargs) == {"table"}
    structure = prefixed(discover(whole.network, inputs), whole.prefix)
    assert {group.name for group in structure.groups} >= {"net.image.0", "net.image.3"}
    smaller = remove(whole, structure, some_of(structure, structure.sizes // 2))
    assert smaller.module.net.image[0].out_channels == 4
    assert whole.network.image[0].out_channels == 8
    seen: list[dict[str, float]] = []
    before = smaller.module.temperature.item()
    fit(
        smaller.module,
        data.train_batches(0),
        Optimization(Recipe("torch.optim.AdamW", {"lr": 1e-2})),
        rounds=2,
        round_steps=4,
        device=CPU,
        val=data.val_dataloader(),
        on_round=lambda number, metrics: not seen.append(metrics),
    )
    # what training_step logs as `loss` is not taken for the validation's
    assert [set(metrics) for metrics in seen] == [{"val_f1", "val_loss"}] * 2
    assert smaller.module.temperature.item() != before
    metrics = evaluate(smaller.module, data.val_dataloader(), CPU)
    assert metrics == pytest.approx(seen[-1])
    logged = run_test_steps(smaller.module, data.val_dataloader(), CPU)
    assert under_names_of(metrics, logged)["val_f1"] == pytest.approx(metrics["val_f1"])


def test_the_module_itself_may_be_the_network() -> None:
    with pytest.raises(ConfigError, match=r"its children: first \(80 parameters\), second"):
        Whole(LitItself())
    whole = Whole(LitItself(), ".")
    data = pictures()
    inputs = inputs_of(whole.module, next(iter(data.val_dataloader())))
    structure = prefixed(discover(whole.network, inputs), whole.prefix)
    assert [group.name for group in structure.groups] == ["first"]
    smaller = remove(whole, structure, some_of(structure, structure.sizes // 2))
    assert smaller.module.first.out_features == 8
    assert run_test_steps(smaller.module, data.val_dataloader(), CPU) == {}
    assert set(evaluate(smaller.module, data.val_dataloader(), CPU)) == {"val_mae"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_follow_from_the_seed_and_leave_the_random_state_alone(workers: int) -> None:
    if workers:
        torch.multiprocessing.set_sharing_strategy("file_system")

    def images(seed: int, passes: int, noise: int) -> list[torch.Tensor]:
        batches = pictures(workers=workers, count=32).train_batches(seed)
        assert len(batches) == 2
        found = []
        for _ in range(passes):
            for batch in batches:
                torch.rand(noise)  # what training draws
                np.random.rand(noise)
                found.append(batch["image"])
        return found

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = images(0, 2, 0)
    assert torch.equal(torch.get_rng_state(), state)
    again = images(0, 2, 5)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], images(1, 1, 0)[0])


def _checked(module: PicturesData) -> None:
    data = adapted(module)
    set_up(data)
    check_data(data)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter([{"table": torch.zeros(4), "label": torch.tensor(0)}] * 8)


def test_loaders_that_cannot_be_used_are_refused_with_the_reason() -> None:
    class Several(PicturesData):
        def train_dataloader(self) -> Any:
            return [super().train_dataloader()] * 2

    class Streamed(PicturesData):
        def train_dataloader(self) -> Any:
            return DataLoader(Endless(), 2)

    class Untested(PicturesData):
        test_dataloader = PicturesData.__bases__[0].test_dataloader

    class Augmented(PicturesData):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    for kind, message in {
        Several: r"Several.train_dataloader gives a list.*join them into one",
        Streamed: r"must have a length.*give its IterableDataset a __len__",
        Untested: r"Untested has no test_dataloader",
        Augmented: r"on_after_batch_transfer would not be called: move it to the LightningModule",
    }.items():
        with pytest.raises(ConfigError, match=message):
            _checked(kind())


def test_modules_that_cannot_be_used_are_refused_with_the_reason() -> None:
    class Manual(LitTwoTower):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    class Blind(LitTwoTower):
        validation_step = LightningModule.validation_step

    class Elsewhere(LitTwoTower):
        def forward(self, batch: dict[str, Any]) -> torch.Tensor:
            return self.net.head(torch.zeros(len(batch["label"]), 24))

    for kind, message in {
        Manual: r"Manual sets automatic_optimization = False.*leave the steps to Lightning",
        Blind: r"Blind has no validation_step",
    }.items():
        with pytest.raises(ConfigError, match=message):
            check_task(Whole(kind()).module)
    batch = next(iter(pictures().val_dataloader()))
    with pytest.raises(ConfigError, match=r"must call the network that is pruned, `self.net`"):
        inputs_of(Whole(Elsewhere()).module, batch)
    with pytest.raises(ConfigError, match=r"got 'nett'; nearest: net"):
        Whole(LitTwoTower(), "nett")
    with pytest.raises(ConfigError, match=r"inside of a LightningModule.*task.module is a Linear"):
        Whole(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"take model=inside"):
        build_task(TASK, nn.Linear(1, 1), None)


def test_what_a_module_holds_in_eval_mode_stays_so_in_training() -> None:
    class Taught(LitTwoTower):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Sequential(nn.BatchNorm1d(4)).eval()
            self.modes: list[bool] = []

        def training_step(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            self.modes += [self.net.training, self.teacher[0].training]
            return super().training_step(batch)

    whole = Whole(Taught()).train()
    sgd = Optimization(Recipe("torch.optim.SGD", {"lr": 1e-3}))
    fit(whole.module, pictures().train_batches(0), sgd, rounds=1, round_steps=1, device=CPU)
    assert whole.module.modes == [True, False]


def test_pictures_that_a_module_logs_go_nowhere() -> None:
    class Shown(LitTwoTower):
        def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.logger.experiment.add_image("first", batch["image"][0])

    task = Whole(Shown()).module
    data = pictures()
    check_outputs(task, next(iter(data.val_dataloader())))
    assert set(evaluate(task, data.val_dataloader(), CPU)) == {"val_f1", "val_loss"}


def test_a_training_step_that_fails_is_told_before_training() -> None:
    class Failing(LitTwoTower):
        def training_step(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            return {"loss": batch["labels"]}

    batch = next(iter(pictures().train_batches(0)))
    with pytest.raises(ConfigError, match=r"Failing.training_step must take.*KeyError: 'labels'"):
        check_training(Whole(Failing()).module, batch)


def test_directions_come_from_the_metrics_that_a_module_holds() -> None:
    assert held_directions(LitTwoTower()) == {"f1": "maximize"}
    assert held_directions(LitItself()) == {"error": "minimize"}
