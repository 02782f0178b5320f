"""What holds of compensation, for every way in which layers are coupled."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.pruning.compensation import Compensated, Compensator
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Group, Keep, Structure
from tests.contracts.criteria_models import MAKERS, Case, half, kill, make, structure_of
from tests.pruning import models as zoo

CASES = [*MAKERS, *(f"zoo {name}" for name in ("unet", "shared", "cross_attention", "outputs"))]
CHANGED_BY_THEIR_NUMBER = ("head_dim",)
"""Kinds whose units act through a product with one another: a copy of one is not in vain."""


def case_of(name: str) -> Case:
    if name.startswith("zoo "):
        case = zoo.case(name.removeprefix("zoo "))
        return Case(copy.deepcopy(case.model), case.structure)
    return Case(make(name), structure_of(name))


@cache
def samples(name: str) -> Inputs:
    """Sixty samples in double precision."""
    shape = (1, 8, 8)
    if name.startswith("zoo "):
        shape = zoo.ZOO[name.removeprefix("zoo ")][1]
    generator = torch.Generator().manual_seed(3)
    return Inputs((torch.randn(60, *shape, generator=generator).double(),))


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return zoo.outputs(model, inputs.args)


def apart(left: nn.Module, right: nn.Module, inputs: Inputs) -> float:
    """Largest difference of the outputs, over the largest output."""
    return zoo.apart(outputs(left, inputs), outputs(right, inputs))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", CASES)
def test_where_nothing_is_removed_nothing_changes(name: str) -> None:
    case = case_of(name)
    model, compensated = Compensator(case.model, case.structure, samples(name))(
        case.structure.full()
    )
    assert same(state(model), state(case.model))
    assert compensated == ()


@pytest.mark.parametrize("name", CASES)
def test_dead_units_take_nothing_with_them(name: str) -> None:
    case = case_of(name)
    kill(case)
    keep = case.structure.full()
    for group in case.structure.groups:
        if group.mask_exact and group.size > 1 and group.members:
            keep[group.start + 1] = False
    plain = remove(case.model, case.structure, keep)
    model, _ = Compensator(case.model, case.structure, samples(name))(keep)
    assert apart(model, plain, samples(name)) < 1e-6


def copy_unit(case: Case, group: Group) -> None:
    """The last unit of a group is produced as the first one is."""
    tensors = case.model.state_dict()
    with torch.no_grad():
        for member in group.members:
            if member.role != "out":
                continue
            row = case.structure.table[member.tensor, member.dim]
            tensor = tensors[member.tensor].movedim(member.dim, 0)
            source = torch.from_numpy(np.flatnonzero(row == group.start))
            place = torch.from_numpy(np.flatnonzero(row == group.start + group.size - 1))
            tensor[place] = tensor[source].clone()


def free_groups(structure: Structure) -> list[Group]:
    groups = []
    for group in structure.groups:
        if group.mask_exact and group.members and group.kind not in CHANGED_BY_THEIR_NUMBER:
            groups.append(group)
    return groups


@pytest.mark.parametrize("name", CASES)
def test_a_copy_of_another_unit_is_removed_without_loss(name: str) -> None:
    structure = case_of(name).structure
    lost = []
    for group in free_groups(structure):
        case = case_of(name)
        copy_unit(case, group)
        keep = structure.full()
        keep[group.start + group.size - 1] = False
        plain = remove(case.model, structure, keep)
        model, compensated = Compensator(case.model, structure, samples(name))(keep)
        assert compensated, group.name
        lost.append(apart(plain, case.model, samples(name)))
        assert apart(model, case.model, samples(name)) < 1e-4, (group.name, compensated)
    assert max(lost) > 1e-2


class Halved:
    def __init__(self, name: str) -> None:
        case = case_of(name)
        self.keep: Keep = half(case.structure)
        self.case = case
        self.before = state(case.model)
        self.plain = remove(case.model, case.structure, self.keep)
        self.model, self.compensated = Compensator(case.model, case.structure, samples(name))(
            self.keep
        )


@cache
def halved(name: str) -> Any:
    return Halved(name)


@pytest.mark.parametrize("name", CASES)
def test_no_consumer_is_worse_on_its_samples(name: str) -> None:
    this = halved(name)
    assert this.compensated
    for consumer in this.compensated:
        assert consumer.after <= consumer.before + 1e-9, consumer


@pytest.mark.parametrize("name", CASES)
def test_the_outputs_are_nearer_to_those_before(name: str) -> None:
    """Half of all units are removed; the squared distance of all outputs counts."""
    this = halved(name)

    def distance(model: nn.Module) -> float:
        total = 0.0
        pairs = zip(
            outputs(model, samples(name)), outputs(this.case.model, samples(name)), strict=True
        )
        for ours, before in pairs:
            total += float((ours - before).square().sum())
        return total

    assert distance(this.model) < distance(this.plain)


@pytest.mark.parametrize("name", CASES)
def test_only_weights_change_and_twice_alike(name: str) -> None:
    this = halved(name)
    again, _ = Compensator(this.case.model, this.case.structure, samples(name))(this.keep)
    assert same(state(again), state(this.model))
    assert same(state(this.case.model), this.before)
    shapes = {key: value.shape for key, value in this.plain.state_dict().items()}
    assert {key: value.shape for key, value in this.model.state_dict().items()} == shapes
    for one, other in zip(this.plain.parameters(), this.model.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
    assert not this.model.training


def test_every_consumer_is_reported_once() -> None:
    this = halved("residual")
    names = [consumer.name for consumer in this.compensated]
    assert len(names) == len(set(names))
    assert all(isinstance(consumer, Compensated) for consumer in this.compensated)


def tree_is_plain(value: Any) -> bool:
    return all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
