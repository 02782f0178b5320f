"""Optimizer state over a cut: the surviving units go on as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from models import case, plan
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lightning_modules.errors import PlanError
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.optimizer import by_name, load_by_name, slice_state
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure

MAKE: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: Adam(p, lr=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def step(model: nn.Module, optimizer: Optimizer, seed: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model.train()(x).pow(2).mean().backward()
    optimizer.step()


def mlp() -> tuple[nn.Module, Structure, Keep]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)
    ).double()
    structure = discover(model, (torch.randn(1, 5),))
    return model, structure, plan(structure, np.random.default_rng(0))


@pytest.mark.parametrize("name", MAKE)
def test_steps_after_the_cut_are_those_of_the_masked_dense_model(name: str) -> None:
    """Zeroed units hand on no signal and get no gradient; only their own old momentum would move
    them.
    """
    model, structure, keep = mlp()
    optimizer = MAKE[name](model.parameters())
    for seed in range(3):
        step(model, optimizer, seed, (8, 5))
    small = remove(model, structure, keep)
    following = MAKE[name](small.parameters())
    load_by_name(following, small, slice_state(by_name(optimizer, model), model, structure, keep))
    twin = masked(model, structure, keep)
    reference = MAKE[name](twin.parameters())
    load_by_name(reference, twin, by_name(optimizer, model))
    step(small, following, 7, (8, 5))
    step(twin, reference, 7, (8, 5))
    for key, expected in remove(twin, structure, keep).named_parameters():
        assert torch.allclose(dict(small.named_parameters())[key], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("net", ["multiplier", "shared", "recurrent", "cross_attention"])
def test_every_entry_is_cut_by_hand_like_its_parameter(name: str, net: str) -> None:
    this = case(net)
    model = copy.deepcopy(this.model)
    optimizer = MAKE[name](model.parameters())
    for seed in range(2):
        step(model, optimizer, seed, (2, *this.inputs[0].shape[1:]))
    keep = plan(this.structure, np.random.default_rng(1))
    state = by_name(optimizer, model)
    assert set(state) == {key for key, p in model.named_parameters() if p.grad is not None}
    small = remove(model, this.structure, keep)
    cut = slice_state(state, model, this.structure, keep)
    assert set(cut) == set(state)
    for key, parameter in small.named_parameters():
        for entry, value in cut.get(key, {}).items():
            expected = state[key][entry]
            if isinstance(value, Tensor) and value.dim():
                assert value.shape == parameter.shape
                for dim in range(value.dim()):
                    row = this.structure.table.get((key, dim))
                    if row is not None:
                        stays = torch.tensor(
                            [unit < 0 or bool(keep[unit]) for unit in row.tolist()]
                        )
                        expected = expected[(slice(None),) * dim + (stays,)]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected))
    following = MAKE[name](small.parameters())
    load_by_name(following, small, cut)
    saved = copy.deepcopy(following.state_dict())
    step(small, following, 5, (2, *this.inputs[0].shape[1:]))
    again = MAKE[name](small.parameters())
    again.load_state_dict(saved)


def test_a_chain_of_cuts_carries_what_one_cut_carries() -> None:
    model, structure, first = mlp()
    optimizer = MAKE["adam"](model.parameters())
    step(model, optimizer, 0, (8, 5))
    both = first.copy()
    for group in structure.groups:
        alive = group.start + np.flatnonzero(first[group.units])
        both[alive[1:]] = False
    parent, state = remove(model, structure, first), by_name(optimizer, model)
    chained = slice_state(
        slice_state(state, model, structure, first), parent, structure.restrict(first), both
    )
    once = slice_state(state, model, structure, both)
    assert all(
        torch.equal(chained[key][e], value) for key in once for e, value in once[key].items()
    )


def test_carrying_leaves_its_source_alone() -> None:
    model, structure, keep = mlp()
    optimizer = MAKE["sgd"](model.parameters())
    step(model, optimizer, 0, (8, 5))
    state = by_name(optimizer, model)
    before = copy.deepcopy(state)
    for entries in slice_state(state, model, structure, keep).values():
        entries["momentum_buffer"].zero_()
    twin = copy.deepcopy(model)
    other = MAKE["sgd"](twin.parameters())
    load_by_name(other, twin, state)
    step(twin, other, 1, (8, 5))
    assert all(
        torch.equal(state[k]["momentum_buffer"], v["momentum_buffer"]) for k, v in before.items()
    )


def test_factored_states_and_strangers_are_refused_by_name() -> None:
    model, structure, keep = mlp()
    factored: dict[str, dict[str, Any]] = {
        "2.weight": {"row_var": torch.zeros(9, 1), "step": torch.tensor(1.0)}
    }
    with pytest.raises(PlanError, match=r"'row_var' of 2\.weight has \[9, 1\]"):
        slice_state(factored, model, structure, keep)
    with pytest.raises(PlanError, match=r"lack \['9\.weight'\]"):
        slice_state({"9.weight": {}}, model, structure, keep)
    small = remove(model, structure, keep)
    optimizer = MAKE["sgd"](small.parameters())
    with pytest.raises(PlanError, match="momentum_buffer"):
        load_by_name(optimizer, small, {"0.weight": {"momentum_buffer": torch.zeros(12, 5)}})
    with pytest.raises(PlanError, match=r"lack \['0\.bias'\]"):
        load_by_name(MAKE["sgd"]([small[0].weight]), small, {"0.bias": {}})
