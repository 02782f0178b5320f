"""The Trainer's options: which are a user's, and what they change."""

from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.errors import ConfigError
from lightning_modules.phases.fit import Optimization, evaluate, fit
from lightning_modules.phases.trainer_options import TrainerOptions, check_options
from lightning_modules.recipe import Recipe

CPU = torch.device("cpu")
SGD = Optimization(Recipe("torch.optim.SGD", {"lr": 0.1}))


class Line(LightningModule):
    """Fits a line, and remembers the types of what the network gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.seen: set[torch.dtype] = set()

    def outputs(self, batch: Any) -> Tensor:
        outputs: Tensor = self.model(batch[0])
        self.seen.add(outputs.dtype)
        return outputs

    def training_step(self, batch: Any, index: int) -> Tensor:
        return (self.outputs(batch).float() - batch[1]).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("error", (self.outputs(batch).float() - batch[1]).abs().mean())


def batches(count: int, size: int) -> DataLoader[Any]:
    """The same samples, whatever the size of a batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 3, generator=generator)
    y = x.sum(1, keepdim=True)
    return DataLoader(TensorDataset(x, y), batch_size=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 3}, r"trainer\.max_epochs is set by the search: phases\.train\.epochs"),
        ({"logger": True}, r"trainer\.logger is set by the search: tracking"),
        ({"devices": 2}, r"trainer\.devices is set by the search: .* workers=N"),
        ({"strategy": "ddp_spawn"}, r"trainer\.strategy is set by the search: .* workers=N"),
        ({"bench": True}, r"trainer\.bench=True is no option .* nearest: benchmark"),
        ({"precision": "16-mixed"}, r"16-mixed needs a GPU; .* take bf16-mixed"),
        ({"profiler": "fast"}, r"Lightning's Trainer refuses trainer\.profiler=fast"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(options, CPU)


def test_any_other_option_of_lightning_is_taken() -> None:
    given = {"precision": "bf16-mixed", "benchmark": True, "gradient_clip_algorithm": "value"}
    check_options(given, CPU)
    task = Line()
    fit(
        task,
        batches(1, 4),
        SGD,
        rounds=1,
        round_steps=1,
        device=CPU,
        options=TrainerOptions(given),
    )
    assert task.trainer.precision == "bf16-mixed"
    assert task.trainer.gradient_clip_algorithm == "value"


def test_two_batches_accumulated_make_the_step_of_one_of_twice_the_size() -> None:
    whole, halves = Line(), Line()
    fit(whole, batches(4, 8), SGD, rounds=2, round_steps=2, device=CPU)
    options = TrainerOptions({"accumulate_grad_batches": 2})
    fit(halves, batches(8, 4), SGD, rounds=2, round_steps=2, device=CPU, options=options)
    assert torch.allclose(whole.model.weight, halves.model.weight, atol=1e-6)


def test_a_round_has_its_steps_where_an_epoch_ends_between_them() -> None:
    """Seven batches make two steps of three; the seventh is left out."""
    task = Line()
    rounds = []

    def on_round(done: int, metrics: dict[str, float]) -> bool:
        assert task.trainer.global_step == 2 * done
        rounds.append(done)
        return True

    fit(
        task,
        batches(7, 4),
        SGD,
        rounds=3,
        round_steps=2,
        device=CPU,
        val=batches(1, 4),
        on_round=on_round,
        options=TrainerOptions({"accumulate_grad_batches": 3}),
    )
    assert rounds == [1, 2, 3]
    assert TrainerOptions({"accumulate_grad_batches": 3}).steps_per_epoch(batches(7, 4)) == 2


def test_more_batches_than_an_epoch_has_make_no_step() -> None:
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches=9 .* than an epoch has \(7\)"):
        TrainerOptions({"accumulate_grad_batches": 9}).steps_per_epoch(batches(7, 4))


def test_half_precision_is_of_the_passes_and_not_of_the_weights() -> None:
    task = Line()
    options = TrainerOptions({"precision": "bf16-mixed"})
    fit(task, batches(2, 4), SGD, rounds=1, round_steps=2, device=CPU, options=options)
    evaluate(task, batches(1, 4), CPU, options)
    assert task.seen == {torch.bfloat16}
    assert task.model.weight.dtype == torch.float32
