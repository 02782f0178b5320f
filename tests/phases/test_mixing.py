"""Copies of the training data with samples mixed by pairs, and what the dense model says of
them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.data import digits
from lightning_modules.errors import ConfigError
from lightning_modules.models import SmallResNet
from lightning_modules.phases.distillation import dense_outputs
from lightning_modules.phases.mixing import Copies, FreshMixtures, Mixing
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.tasks import Classification

DATA = digits()
CPU = torch.device("cpu")
N = len(DATA.train_batches(0).inputs)


@pytest.fixture(scope="module")
def model() -> SmallResNet:
    torch.manual_seed(0)
    return SmallResNet(10, width=4).eval()


def cached(model: SmallResNet) -> Tensor:
    found = dense_outputs(Classification(model, 10), DATA.ordered_batches(), DATA.sample_index, CPU)
    assert found is not None
    return found


def copies_of(model: SmallResNet, count: int, seed: int = 3) -> Copies:
    found = Copies(DATA, cached(model), seed)
    for _ in range(count):
        found.add(Classification(model, 10), CPU)
    return found


def test_the_data_itself_stays_as_it_is_in_front(model: SmallResNet) -> None:
    inputs, targets = DATA.splits["train"]
    found = copies_of(model, 1).batch(torch.arange(N))
    assert torch.equal(found[0], inputs)
    assert torch.equal(found[1].argmax(1), targets)
    assert torch.equal(found[1].sum(1), torch.ones(N))


def test_a_copy_has_every_sample_once_on_each_side(model: SmallResNet) -> None:
    made = copies_of(model, 2)
    inputs, targets = DATA.splits["train"]
    for copy in (1, 2):
        index = torch.arange(copy * N, (copy + 1) * N)
        partner, share = made.partner[index], made.share[index]
        assert torch.equal(partner.sort().values, torch.arange(N))
        mixed, shares, _ = made.batch(index)
        along = share.view(-1, 1, 1, 1)
        torch.testing.assert_close(mixed, along * inputs + (1 - along) * inputs[partner])
        one, other = F.one_hot(targets, 10).float(), F.one_hot(targets[partner], 10).float()
        torch.testing.assert_close(shares, share[:, None] * one + (1 - share[:, None]) * other)
        assert 0.45 < float(share.mean()) < 0.55


def test_outputs_are_those_of_the_dense_model_on_the_mixtures(model: SmallResNet) -> None:
    made = copies_of(model, 2)
    assert made.outputs.shape == (3 * N, 10)
    index = torch.tensor([0, N - 1, N, 2 * N + 5, 3 * N - 1])
    with torch.no_grad():
        torch.testing.assert_close(
            made.outputs[index], model(made.batch(index)[0]), rtol=1e-4, atol=1e-4
        )


def test_a_copy_is_the_same_whatever_their_number_and_another_by_another_seed(
    model: SmallResNet,
) -> None:
    few, more, other = copies_of(model, 1), copies_of(model, 3), copies_of(model, 1, seed=4)
    index = torch.arange(2 * N)
    for one, two in zip(few.batch(index), more.batch(index), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(few.outputs, more.outputs[: 2 * N])
    assert not torch.equal(few.partner, other.partner)


def test_a_lesson_goes_through_all_samples_in_an_order_of_its_seed(model: SmallResNet) -> None:
    mixing = Mixing(Classification(model, 10), DATA, cached(model), CPU, 0)
    batches, teacher = mixing(2, 7)
    passes = [torch.cat([batch[2] for batch in batches]) for _ in range(2)]
    assert len(passes[0]) == 3 * N // 64 * 64 == 64 * len(batches)  # type: ignore[arg-type]
    assert len(passes[0].unique()) == len(passes[0])
    assert not torch.equal(*passes)
    assert torch.equal(passes[0], torch.cat([batch[2] for batch in mixing(2, 7).batches]))
    batch = next(iter(batches))
    with torch.no_grad():
        torch.testing.assert_close(teacher(batch, Inputs()), model(batch[0]), rtol=1e-4, atol=1e-4)


def test_outputs_are_computed_once(model: SmallResNet) -> None:
    seen = []
    counted = model.register_forward_hook(lambda *_: seen.append(1))
    try:
        mixing = Mixing(Classification(model, 10), DATA, cached(model), CPU, 0)
        seen.clear()
        mixing.prepare(2)
        once = len(seen)
        for copies in (1, 2):
            list(mixing(copies, 0).batches)
        assert once > 0
        assert len(seen) == once
    finally:
        counted.remove()


def test_seconds_pay_for_copies(model: SmallResNet) -> None:
    assert (
        Mixing(Classification(model, 10), DATA, cached(model), CPU, 0, seconds=2.0).affordable(7.0)
        == 3
    )
    assert Mixing(Classification(model, 10), DATA, None, CPU, 0, seconds=2.0).affordable(7.0) == 0


class Augmented:
    """Samples that look different each time: no index."""

    num_classes = 3

    def train_batches(self, seed: int) -> list[list[Tensor]]:
        drawn = torch.Generator().manual_seed(seed)
        return [[torch.rand(8, 2, generator=drawn), torch.arange(8) % 3] for _ in range(5)]


def test_without_an_index_samples_are_mixed_within_their_batch_and_the_teacher_runs_along() -> None:
    teacher = torch.nn.Linear(2, 3)
    batches, teaches = Mixing(Classification(teacher, 3), Augmented(), None, CPU, 0)(1, 7)  # type: ignore[arg-type]
    assert len(batches) == 5  # type: ignore[arg-type]
    changed = 0
    for plain, batch in zip(Augmented().train_batches(7), batches, strict=True):
        assert torch.equal(teaches(batch, Inputs((batch[0],))), teacher(batch[0]))
        torch.testing.assert_close(batch[1].sum(1), torch.ones(8))
        same = (batch[0] == plain[0]).all(1)
        assert torch.equal(batch[1][same].argmax(1), plain[1][same])
        changed += int((~same).sum())
    assert 5 < changed < 35  # about half of 40, less those that met themselves


def test_what_cannot_be_added_up_is_refused_or_left_alone(model: SmallResNet) -> None:
    tokens = [[torch.arange(8).view(4, 2), torch.zeros(4, dtype=torch.long), torch.arange(4)]]
    data: Any = SimpleNamespace(num_classes=2, ordered_batches=lambda: tokens)
    mixing = Mixing(Classification(model, 10), data, torch.zeros(4, 2), CPU, 0, seconds=1.0)
    assert mixing.affordable(100.0) == 0
    with pytest.raises(ConfigError, match=r"one tensor of floats.*int64: distillation.mixed=0"):
        mixing.prepare(1)
    with pytest.raises(ConfigError, match="one tensor of floats"):
        list(FreshMixtures([[torch.arange(4), torch.zeros(4, dtype=torch.long)]], 0.5, 2, 0))
