"""What every data module gives the phases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_modules.data.contract import check_data, sample_index, set_up
from lightning_modules.errors import ConfigError
from lightning_modules.phases.memory import in_parts
from lightning_modules.tasks.contract import inputs_of
from tests.contracts.task_cases import NAMES, parts_of


def tensors(batch: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_training_batches_follow_from_their_seed_alone(name: str) -> None:
    _, data, _ = parts_of(name)
    set_up(data)
    check_data(data)
    first, again, other = (list(data.train_batches(seed)) for seed in (3, 3, 4))
    assert len(first) == len(data.train_batches(3))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(tensors(first), tensors(other), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_samples_with_an_index_always_look_the_same(name: str) -> None:
    _, data, task = parts_of(name)
    set_up(data)
    index = sample_index(data, next(iter(data.ordered_batches())))
    if index is None:
        return
    seen: dict[int, Tensor] = {}
    for batch in [*data.ordered_batches(), *data.train_batches(1)]:
        inputs = inputs_of(task, batch).tensors()[0]
        for place, sample in zip(sample_index(data, batch).tolist(), inputs, strict=True):  # type: ignore[union-attr]
            assert torch.equal(seen.setdefault(place, sample), sample)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_parts_is_the_batch(name: str) -> None:
    """Each part has the form of the whole, and together they have its samples in order."""
    _, data, task = parts_of(name)
    set_up(data)
    batch = next(iter(data.val_dataloader()))
    parts = list(in_parts([batch], 2))
    assert [inputs_of(task, part).batch for part in parts] == [
        inputs_of(task, batch).batch // 2
    ] * 2
    for place, entry in enumerate(batch.values() if isinstance(batch, dict) else batch):
        pieces = [list(part.values() if isinstance(part, dict) else part)[place] for part in parts]
        if isinstance(entry, Tensor):
            assert torch.equal(torch.cat(pieces), entry)
        else:
            assert [*pieces[0], *pieces[1]] == entry
    assert {type(part) for part in parts} == {type(batch)}


def test_data_without_its_loaders_is_told_all_that_is_missing() -> None:
    with pytest.raises(
        ConfigError, match=r"object has no setup, train_batches, ordered_batches, val_dataloader"
    ):
        check_data(object())
