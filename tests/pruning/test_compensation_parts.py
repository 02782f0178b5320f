"""The parts of compensation: what a kernel meets, the ridge, its guards, and inputs that are
joined.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.pruning.compensation.ridge import MOST_GROWTH, Evidence, Layer, fitted
from lightning_modules.pruning.inputs import Inputs, joined_batches
from lightning_modules.pruning.multiplications import (
    Multiplication,
    Multiplications,
    output_sizes,
    outputs_at,
)

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "linear on tokens": (nn.Linear(5, 4, bias=False), (3, 6, 5)),
    "conv1d": (nn.Conv1d(4, 3, 3, stride=2, padding=1), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 3, 3, padding=1), (3, 4, 7, 6)),
    "conv2d, strided and dilated": (
        nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 3)),
        (3, 4, 11, 12),
    ),
    "conv2d, padded to the same size": (nn.Conv2d(4, 3, 3, padding="same"), (3, 4, 7, 6)),
    "conv3d": (nn.Conv3d(2, 3, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1)), (3, 2, 5, 6, 4)),
    "transposed": (nn.ConvTranspose2d(4, 3, 2, stride=2), (3, 4, 5, 4)),
    "transposed, with all options": (
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1, dilation=2),
        (3, 4, 5, 4),
    ),
    "transposed in one dimension": (nn.ConvTranspose1d(4, 3, 4, stride=3, padding=1), (3, 4, 6)),
}


class Seen(Multiplications):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.pairs: list[tuple[Multiplication, Tensor]] = []

    def after(self, product: Multiplication, out: Tensor) -> None:
        self.pairs.append((product, out))


def seen(model: nn.Module, *inputs: Tensor) -> list[tuple[Multiplication, Tensor]]:
    watch = Seen(model)
    with torch.no_grad(), watch:
        model(*inputs)
    return watch.pairs


@pytest.mark.parametrize("name", LAYERS)
def test_columns_times_the_weight_are_the_outputs(name: str) -> None:
    layer, shape = LAYERS[name]
    ((product, out),) = seen(layer.double(), torch.randn(shape).double())
    sizes = output_sizes(out, product.channel)
    positions = torch.randperm(math.prod(sizes))[:40]
    matrix = product.weight.matrix().flatten(0, -2)
    outputs = product.columns(positions, sizes) @ matrix
    if product.bias is not None:
        outputs = outputs + product.bias.values
    torch.testing.assert_close(outputs, outputs_at(out, product.channel, positions))


class Functional(nn.Module):
    """One parameter, used whole, transposed, from the left, and by its second half of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Any:
        whole = x @ self.table.t()
        left = self.table @ x.t()
        back = whole @ self.table
        half = nn.functional.linear(x, self.table[2:])
        return whole, left, back, half


def test_a_parameter_is_known_in_every_form() -> None:
    whole, left, back, half = seen(Functional(), torch.randn(5, 6))
    for product, _ in (whole, left, half):
        assert product.weight.own_into == 1
    assert back[0].weight.own_into == 0
    assert half[0].weight.outputs == slice(2, 4)
    assert left[0].channel == 0
    assert left[0].weight.matrix().shape == (6, 4)


def test_groups_and_weights_that_are_computed_are_not_seen() -> None:
    assert seen(nn.Conv2d(4, 4, 3, groups=2), torch.randn(1, 4, 5, 5)) == []
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert seen(normed, torch.randn(2, 4)) == []


def evidence(x: Tensor, wanted: Tensor) -> Evidence:
    return Evidence(x, wanted, torch.arange(len(x)) % 3 == 2)


def layer(inputs: int, outputs: int, bias: bool = False, largest: float = 100.0) -> Layer:
    """A layer whose weights are zero."""
    weight = torch.zeros(inputs, outputs).double()
    return Layer(weight, torch.zeros(outputs).double() if bias else None, 1.0, largest)


def test_what_can_be_explained_is_explained() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator).double()
    weight = torch.randn(8, 3, generator=generator).double()
    fit = fitted(evidence(x, x @ weight + 2.0), layer(8, 3, bias=True))
    assert fit is not None
    assert fit.shift is not None
    torch.testing.assert_close(fit.change, weight, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(fit.shift, torch.full((3,), 2.0).double(), atol=1e-4, rtol=0.0)
    assert fit.after < 1e-6 * fit.before


@pytest.mark.parametrize(("positions", "inputs"), [(90, 6), (90, 120)])
def test_the_ridge_is_that_of_the_closed_form(positions: int, inputs: int) -> None:
    """With fewer positions than inputs, too."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(positions, 6, generator=generator).double()
    x = hidden @ torch.randn(6, inputs, generator=generator).double()
    wanted = x[:, :2] + torch.randn(positions, 2, generator=generator).double()
    fit = fitted(evidence(x, wanted), layer(inputs, 2))
    assert fit is not None
    gram = x.T @ x
    strength = fit.ridge * gram.diagonal().mean()
    left = gram + strength * torch.eye(inputs).double()
    solution = torch.linalg.solve(left, x.T @ wanted)
    torch.testing.assert_close(fit.change, solution)
    assert fit.after == pytest.approx(float((wanted - x @ solution).square().sum()))
    assert fit.before == pytest.approx(float(wanted.square().sum()))


def test_what_only_fits_the_samples_it_has_seen_is_dropped() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 20, generator=generator).double()
    noise = torch.randn(30, 2, generator=generator).double()
    assert fitted(evidence(x, noise), layer(20, 2)) is None


def test_weights_that_would_grow_too_far_are_dropped() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 4, generator=generator).double()
    wanted = x @ torch.full((4, 1), 1.0).double()
    largest = 2.0 / MOST_GROWTH
    fit = fitted(evidence(x, wanted), layer(4, 1, largest=1.01 * largest))
    assert fit is not None
    assert float(fit.change.norm()) <= 1.01 * 2.0
    assert fitted(evidence(x, wanted), layer(4, 1, largest=0.5 * largest)) is None


def test_inputs_that_are_dead_change_nothing() -> None:
    assert fitted(evidence(torch.zeros(30, 4).double(), torch.ones(30, 2)), layer(4, 2)) is None


def test_batches_of_one_shape_are_joined_up_to_the_samples_asked_for() -> None:
    batches = [
        Inputs((torch.full((2, 3), float(number)),), {"mask": torch.ones(2, length), "on": True})
        for number, length in enumerate([4, 5, 4, 4, 4])
    ]
    whole = joined_batches(batches, 5)
    assert whole.args[0][:, 0].tolist() == [0.0, 0.0, 2.0, 2.0, 3.0, 3.0]
    assert whole.kwargs["mask"].shape == (6, 4)
    assert whole.kwargs["on"] is True


def test_inputs_without_a_common_batch_are_taken_as_they_are() -> None:
    batches = [Inputs((torch.zeros(2, 3), torch.zeros(4)))] * 3
    assert joined_batches(batches, 100).args[0].shape == (2, 3)
