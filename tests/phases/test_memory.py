"""Too little memory: how it is told from other errors, and training on halves of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.data import digits
from lightning_modules.errors import ConfigError
from lightning_modules.phases.distillation import Distillation, dense_outputs, distilled, teacher
from lightning_modules.phases.fit import Optimization, fit
from lightning_modules.phases.memory import Parts, in_parts, out_of_memory
from lightning_modules.phases.recalibration import recalibrate
from lightning_modules.phases.watched import Watched, watched
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification

CPU = torch.device("cpu")
SGD = Optimization(Recipe("torch.optim.SGD", {"lr": 0.1, "momentum": 0.9}), clip_norm=1.0)


def raised(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as found:  # noqa: PT011 - any
        function()
    return found.value


def test_what_allocators_say_is_out_of_memory() -> None:
    def wrapped() -> None:
        try:
            torch.empty(2**48)
        except RuntimeError as error:
            raise ConfigError("it does not export") from error

    assert out_of_memory(raised(lambda: torch.empty(2**48)))
    assert out_of_memory(raised(wrapped))
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))


def test_other_errors_are_not() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))
    assert not out_of_memory(raised(lambda: torch.zeros(2) @ torch.zeros(3)))


def test_halves_are_the_same_samples_in_the_same_order() -> None:
    whole, halves = list(digits().train_batches(3)), list(Parts(digits().train_batches(3), 2))
    assert len(halves) == 2 * len(whole) == len(Parts(digits().train_batches(3), 2))
    for place, batch in enumerate(whole):
        first, second = halves[2 * place : 2 * place + 2]
        for entry, one, two in zip(batch, first, second, strict=True):
            assert torch.equal(entry, torch.cat([one, two]))
        assert abs(len(first[0]) - len(second[0])) <= 1


def test_a_batch_that_is_no_batch_any_more_is_refused() -> None:
    batch = [torch.zeros(1, 3), torch.zeros(1), "kept as it is"]
    with pytest.raises(ConfigError, match="a batch of 1 cannot be cut into 2 parts"):
        list(Parts([batch], 2))
    (odd,) = [[len(part[0]) for part in Parts([[torch.zeros(5, 3), "name"]], 2)]]
    assert odd == [3, 2]
    assert in_parts([batch], 1) == [batch]


@pytest.mark.parametrize("stacked", [True, False])
def test_lists_of_samples_are_cut_where_each_sample_has_a_dict(stacked: bool) -> None:
    """Images of three channels and three boxes are not taken for a batch of three."""
    images = tuple(torch.full((3, 4, 4), float(number)) for number in range(3))
    objects = tuple({"boxes": torch.full((3, 4), float(number))} for number in range(3))
    batch = (torch.stack(images) if stacked else images, objects)
    first, second = Parts([batch], 2)
    assert [len(first[0]), len(first[1]), len(second[0]), len(second[1])] == [2, 2, 1, 1]
    assert first[1] == objects[:2]
    assert torch.equal(second[0][0], images[2])
    assert second[1][0]["boxes"].shape == (3, 4)


class Plain(nn.Module):
    """Without norms, which see the halves they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def test_halves_make_the_steps_that_whole_batches_make() -> None:
    data = digits()
    torch.manual_seed(1)
    dense = Plain()
    cached = dense_outputs(
        Classification(dense, 10), data.ordered_batches(), data.sample_index, CPU
    )
    found, seen = [], []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = Plain()
        task = Classification(model, 10)
        how = Distillation(teacher(dense, cached, data.sample_index), task.divergence)
        units: list[tuple[int, float]] = []

        def on_round(
            unit: int, metrics: dict[str, float], units: list[tuple[int, float]] = units
        ) -> bool:
            units.append((unit, metrics["loss"]))
            return True

        with distilled(task, how):
            fit(
                task,
                data.train_batches(0),  # 15 batches: the units end within epochs
                SGD,
                rounds=4,
                round_steps=7,
                device=CPU,
                val=data.val_dataloader(),
                on_round=on_round,
                accumulate=accumulate,
            )
        found.append(model.state_dict())
        seen.append(units)
    assert [unit for unit, _ in seen[0]] == [unit for unit, _ in seen[1]] == [1, 2, 3, 4]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-5)
    assert seen[0][-1][1] == pytest.approx(seen[1][-1][1], rel=1e-3)


class OverError(Exception):
    pass


def after(calls: int) -> tuple[Callable[[], None], list[int]]:
    made: list[int] = []

    def check() -> None:
        made.append(1)
        if len(made) > calls:
            raise OverError

    return check, made


def test_a_check_ends_training_and_recalibration_at_the_next_batch() -> None:
    data, model = digits(), Plain()
    for calls in (3, 9):  # within training, within the validation that follows
        check, made = after(calls)
        with pytest.raises(OverError):
            fit(
                Classification(model, 10),
                data.train_batches(0),
                SGD,
                rounds=4,
                round_steps=8,
                device=CPU,
                val=data.val_dataloader(),
                on_round=lambda *_: True,
                callbacks=[Watched(check)],
            )
        assert len(made) == calls + 1
    check, made = after(1)
    normed = nn.Sequential(nn.BatchNorm2d(1))
    inputs = (Inputs((batch[0],)) for batch in watched(data.train_batches(0), check))
    with pytest.raises(OverError):
        recalibrate(normed, inputs, 4, CPU)
    assert len(made) == 2
