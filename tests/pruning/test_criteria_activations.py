"""Known scores of the criteria that look at activations, and what they get to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.criteria import (
    Activation,
    Apoz,
    Calibration,
    Correlation,
    Criterion,
    Rank,
)
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.thresholds import Scores


def run(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).sum()


def passing(width: int) -> nn.Sequential:
    """The units are the inputs behind a ReLU."""
    model = nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, 2))
    nn.init.eye_(model[0].weight)
    return model


def score(criterion: Criterion, model: nn.Module, *batches: Tensor) -> Scores:
    structure = discover(model, (torch.zeros_like(batches[0][:1]),))
    return criterion(model.eval(), structure, Calibration(batches, run))


ROWS = torch.tensor([[1.0, -1.0, 2.0], [3.0, -2.0, -4.0], [5.0, -3.0, 0.0], [7.0, -4.0, 6.0]])


def test_activation_is_the_mean_over_all_batches_behind_the_relu() -> None:
    np.testing.assert_allclose(score(Activation(), passing(3), ROWS[:2], ROWS[2:]), [4.0, 0.0, 2.0])


def test_always_on_scores_one_and_never_on_zero() -> None:
    np.testing.assert_allclose(score(Apoz(), passing(3), ROWS[:2], ROWS[2:]), [1.0, 0.0, 0.5])
    np.testing.assert_allclose(
        score(Apoz(tolerance=2.0), passing(3), ROWS[:2], ROWS[2:]), [0.75, 0.0, 0.25]
    )


def maps() -> tuple[nn.Sequential, Tensor]:
    """Three channels: the image, nothing, and twice the image."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 2.0]).reshape(3, 1, 1, 1))
    image = torch.rand(6, generator=torch.Generator().manual_seed(0)) + 0.1
    return model, torch.outer(image, image)[None, None]


def test_maps_of_rank_one_have_rank_one() -> None:
    model, image = maps()
    np.testing.assert_allclose(score(Rank(), model, image, image), [1.0, 0.0, 1.0])


def test_rank_is_the_mean_over_images() -> None:
    model, image = maps()
    two = torch.cat([image, torch.eye(6)[None, None]])
    np.testing.assert_allclose(score(Rank(), model, two), [3.5, 0.0, 3.5])
    np.testing.assert_allclose(score(Rank(images=1), model, two), [1.0, 0.0, 1.0])


def test_rank_of_vectors_is_the_share_that_is_not_zero() -> None:
    np.testing.assert_allclose(score(Rank(), passing(3), ROWS[:2], ROWS[2:]), [1.0, 0.0, 0.5])


SERIES = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])


def linear(columns: Tensor) -> tuple[nn.Sequential, Tensor]:
    """Units whose activations are the columns."""
    model = nn.Sequential(
        nn.Linear(columns.shape[1], columns.shape[1], bias=False), nn.Linear(columns.shape[1], 2)
    )
    nn.init.eye_(model[0].weight)
    return model, columns


def test_correlation_counts_stronger_units_only() -> None:
    a, b = SERIES.T
    model, x = linear(torch.stack([a, b, a + b, 0.1 * a, torch.full((4,), 3.0)], 1))
    half = 1.0 - 0.5**0.5
    # a + b is the strongest; a and b each correlate with it by 1 / sqrt 2, a tenth of a with a by
    # 1, a constant counts as replaced
    np.testing.assert_allclose(
        score(Correlation(), model, x), [half, half, 1.0, 0.0, 0.0], atol=1e-6
    )
    np.testing.assert_allclose(
        score(Correlation(), model, x[:1], x[1:]), [half, half, 1.0, 0.0, 0.0], atol=1e-6
    )


def test_opposite_units_are_duplicates_of_which_the_stronger_stays() -> None:
    a, b = SERIES.T
    model, x = linear(torch.stack([a, -2.0 * a + 5.0, b], 1))
    np.testing.assert_allclose(score(Correlation(), model, x), [0.0, 1.0, 1.0], atol=1e-6)


def test_correlation_over_many_samples_is_that_of_numpy() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        6, 6, generator=torch.Generator().manual_seed(1)
    )
    model, x = linear(x + 10.0)
    likeness, strength = np.abs(np.corrcoef(x.T)), x.var(0).numpy()
    stronger = strength[None, :] > strength[:, None]
    expected = 1.0 - np.where(stronger, likeness, 0.0).max(1)
    np.testing.assert_allclose(
        score(Correlation(), model, *x.split(100)), expected, rtol=1e-4, atol=1e-6
    )


class Flat(nn.Module):
    """Channels in runs of four inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 2)
        self.norm.running_mean.uniform_(-1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Joined(nn.Module):
    """Two layers side by side, then a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)
        self.up = nn.ConvTranspose2d(5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([F.gelu(self.left(x)), torch.tanh(self.right(x))], 1)


class Functional(nn.Module):
    """Parameters without modules, as (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).movedim(1, -1) @ self.second

    def features(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.flatten(1, 2) @ self.first).movedim(-1, 1)


class Transposed(nn.Module):
    """Parameters without modules, as (outputs, inputs), used from a slice and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.last = nn.Parameter(torch.randn(10, 4)), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.features(x).movedim(1, -1), self.last)

    def features(self, x: Tensor) -> Tensor:
        left, right = self.both.chunk(2)
        x = x.flatten(1, 2)
        return (torch.relu(F.linear(x, left)) + torch.relu(x @ right.T)).movedim(-1, 1)


@pytest.mark.parametrize("kind", [Flat, Joined, Functional, Transposed])
def test_what_counts_is_what_the_consumer_sees(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        seen = model.features(x).abs().transpose(0, 1).flatten(1).mean(1)  # type: ignore[operator]
    np.testing.assert_allclose(score(Activation(), model, x), seen, rtol=1e-5)


def test_attention_is_seen_behind_the_softmax() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = (
                nn.MultiheadAttention(6, 3, batch_first=True),
                nn.Linear(6, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 5, 6)
    structure = discover(model, (x,))
    heads = next(group for group in structure.groups if group.kind == "head")
    found = Activation()(model, structure, Calibration([x], run))[heads.units]
    with torch.no_grad():
        weight, bias = model.attention.in_proj_weight, model.attention.in_proj_bias
        q, k, v = (
            part.reshape(2, 5, 3, 2).transpose(1, 2)
            for part in F.linear(x, weight, bias).chunk(3, -1)
        )
        mixed = (q @ k.transpose(-2, -1) / 2**0.5).softmax(-1) @ v
    np.testing.assert_allclose(found, mixed.abs().mean((0, 2, 3)), rtol=1e-5)


def test_states_of_a_recurrent_layer_are_seen_step_by_step() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 5, 3)
    with torch.no_grad():
        states = model.rnn(x)[0].abs()
    # the next step reads the state before it, at first zeros; the head reads all states
    expected = (states[:, :-1].sum((0, 1)) / 10 + states.mean((0, 1))) / 2
    np.testing.assert_allclose(score(Activation(), model, x), expected, rtol=1e-5)


def test_units_that_no_weight_consumes_are_seen_where_they_come_out() -> None:
    class Scores(nn.Module):
        """Queries meet keys and nothing else."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1))

    torch.manual_seed(0)
    model, x = Scores().eval(), torch.randn(2, 5, 4)
    with torch.no_grad():
        expected = (model.query(x).abs().mean((0, 1)) + model.key(x).abs().mean((0, 1))) / 2
    np.testing.assert_allclose(score(Activation(), model, x), expected, rtol=1e-5)


def test_a_group_that_is_seen_nowhere_is_named() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (
                nn.Parameter(torch.randn(4, 3)),
                nn.Parameter(torch.randn(2, 4)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.relu(F.linear(x, self.first * 2.0)), self.second * 2.0)

    model = Computed()
    plain = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    structure = discover(plain, (torch.zeros(1, 3),))
    names = {"0.weight": "first", "2.weight": "second"}
    groups = tuple(
        replace(
            g, name="first", members=tuple(replace(m, tensor=names[m.tensor]) for m in g.members)
        )
        for g in structure.groups
    )
    table = {(names[name], dim): row for (name, dim), row in structure.table.items()}
    with pytest.raises(PlanError, match="group 'first' passes none that can be seen"):
        Activation()(
            model,
            replace(structure, groups=groups, table=table),
            Calibration([torch.ones(2, 3)], run),
        )


@pytest.mark.parametrize("criterion", [Activation(), Apoz(), Rank(), Correlation()])
def test_without_batches_there_is_no_score(criterion: Criterion) -> None:
    model = passing(3)
    structure = discover(model, (torch.zeros(1, 3),))
    with pytest.raises(PlanError, match="calibration_batches"):
        criterion(model, structure, Calibration([], run))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Apoz(tolerance=-1.0), "tolerance must be at least 0"),
        (lambda: Rank(images=0), "images must be at least 1"),
        (lambda: Rank(tolerance=1.0), "tolerance must lie between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(build: Callable[[], Criterion], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
