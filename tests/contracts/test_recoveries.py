"""How training goes on after a cut: with which learning rates, and with what of the optimizer's
state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from criteria_models import half, structure_of
from pytorch_lightning import Callback, Trainer
from torch import nn

from lightning_modules.data import digits
from lightning_modules.errors import ConfigError
from lightning_modules.models import SmallResNet
from lightning_modules.phases.carried import Carried
from lightning_modules.phases.fit import Optimization, fit
from lightning_modules.pruning.optimizer import slice_state
from lightning_modules.pruning.removal import remove
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification

CPU = torch.device("cpu")
DATA = digits()
SGD = Recipe("torch.optim.SGD", {"lr": 0.1, "momentum": 0.9})
ADAM = Recipe("torch.optim.Adam", {"lr": 0.01})
TORCH = "torch.optim.lr_scheduler."


def small(seed: int = 0) -> SmallResNet:
    torch.manual_seed(seed)
    return SmallResNet(10, width=4)


class Rates(Callback):
    """The learning rate of every optimizer step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        self.found.append(optimizer.param_groups[0]["lr"])


def rates(how: Optimization, rounds: int = 2, steps: int = 6) -> list[float]:
    """As `fit` trains with them."""
    found = Rates()
    task = Classification(small(), 10)
    fit(
        task,
        DATA.train_batches(0),
        how,
        rounds=rounds,
        round_steps=steps,
        device=CPU,
        callbacks=[found],
    )
    assert len(found.found) == rounds * steps
    return found.found


def by_torch(scheduler: Recipe, steps: int = 12) -> list[float]:
    """As torch would run a scheduler with all its arguments."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    built, found = scheduler.build(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        built.step()
    return found


SCHEDULERS = {
    "OneCycleLR": ({"max_lr": 0.5}, {"total_steps": 12}),
    "CosineAnnealingLR": ({"eta_min": 0.001}, {"T_max": 12}),
    "ExponentialLR": ({"gamma": 0.8}, {}),
    "LinearLR": ({"start_factor": 1.0, "end_factor": 0.1}, {"total_iters": 12}),
    "PolynomialLR": ({"power": 2.0}, {"total_iters": 12}),
    "StepLR": ({"step_size": 4}, {}),
    "CosineAnnealingWarmRestarts": ({"T_0": 5}, {}),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_runs_over_all_steps_without_being_told_their_number(name: str) -> None:
    given, filled = SCHEDULERS[name]
    how = Optimization(SGD, scheduler=Recipe(TORCH + name, given))
    how.check()
    assert rates(how) == pytest.approx(by_torch(Recipe(TORCH + name, {**given, **filled})))


def test_numbers_that_are_given_are_kept() -> None:
    linear = Recipe(TORCH + "LinearLR", {"start_factor": 0.1, "total_iters": 3})
    assert rates(Optimization(SGD, scheduler=linear)) == pytest.approx(by_torch(linear))
    cycle = Recipe(TORCH + "OneCycleLR", {"max_lr": 0.5, "epochs": 4, "steps_per_epoch": 5})
    assert rates(Optimization(SGD, scheduler=cycle)) == pytest.approx(by_torch(cycle))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            Recipe(TORCH + "ReduceLROnPlateau", {}),
            "without a metric; ReduceLROnPlateau needs one: take another",
        ),
        (Recipe("torch.optim.SGD", {}), r"one of torch.optim.lr_scheduler's; got torch.optim.SGD"),
        (
            Recipe("torch.nn.functional.relu", {}),
            r"one of torch.optim.lr_scheduler's; got torch.nn.functional.relu",
        ),
        (
            Recipe(TORCH + "ExponentialLR", {}),
            r"ExponentialLR: missing a required argument: 'gamma'",
        ),
        (
            Recipe(TORCH + "StepLR", {"step_size": 3, "gama": 0.1}),
            "StepLR: got an unexpected .*'gama'",
        ),
        (Recipe(TORCH + "StepLRR", {}), "has no 'StepLRR'; nearest: "),
        (
            Recipe(TORCH + "OneCycleLR", {"max_lr": 0.5, "pct_start": 2.0}),
            "OneCycleLR: .*pct_start",
        ),
    ],
)
def test_what_is_no_scheduler_is_refused_before_anything_is_trained(
    scheduler: Recipe, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Optimization(SGD, scheduler=scheduler).check()


def test_the_default_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    found = rates(Optimization(SGD, warmup=0.25))
    assert found[:3] == pytest.approx([0.025, 0.05, 0.075])
    assert found[3:] == pytest.approx([0.05 * (1 + np.cos(np.pi * step / 9)) for step in range(9)])


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_a_rewound_rate_is_the_tail_of_the_whole_curve(scheduler: str | None) -> None:
    recipe = None if scheduler is None else Recipe(TORCH + scheduler, SCHEDULERS[scheduler][0])
    whole = rates(Optimization(SGD, scheduler=recipe))
    for steps in (1, 5, 12):
        tail = rates(Optimization(SGD, scheduler=recipe, rewound=steps / 12), 1, steps)
        assert tail == pytest.approx(whole[-steps:]), steps


class Fixed:
    """The same batches each time."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def carry(
    model: nn.Module, carried: Carried, batches: list[Any], recipe: Recipe, rounds: int = 2
) -> None:
    """Train at a constant rate."""
    how = Optimization(recipe, scheduler=Recipe(TORCH + "ConstantLR", {"factor": 1.0}))
    task = Classification(model, 10)
    fit(
        task,
        Fixed(batches),
        how,
        rounds=rounds,
        round_steps=len(batches) // rounds,
        device=CPU,
        callbacks=[carried],
    )


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        Classification(model.train(), 10).training_step(batch, 0).backward()
        optimizer.step()


def assert_equal(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
def test_two_trainings_with_the_state_carried_over_are_one(recipe: Recipe) -> None:
    batches = list(DATA.train_batches(0))[:8]
    model, twin = small(), small()
    first = Carried()
    carry(model, first, batches[:4], recipe)
    assert set(first.state) == {name for name, _ in model.named_parameters()}
    kept = copy.deepcopy(first.state)
    carry(model, Carried(first.state), batches[4:], recipe)
    by_hand(twin, recipe.build(twin.parameters()), batches)
    assert_equal(model, twin)
    fresh = small()
    carry(fresh, Carried(), batches[:4], recipe)
    for name, entries in kept.items():  # what was carried over is a copy
        assert all(torch.equal(first.state[name][key], value) for key, value in entries.items())
    carry(fresh, Carried(), batches[4:], recipe)
    assert not torch.allclose(fresh.fc.weight, twin.fc.weight)


@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
def test_after_a_cut_the_state_of_what_stays_goes_on(recipe: Recipe) -> None:
    batches, structure = list(DATA.train_batches(0))[:8], structure_of("residual")
    model, twin, keep = small(), small(), half(structure_of("residual"))
    carried = Carried()
    carry(model, carried, batches[:4], recipe)
    smaller = remove(model, structure, keep)
    carry(smaller, Carried(slice_state(carried.state, model, structure, keep)), batches[4:], recipe)

    optimizer = recipe.build(twin.parameters())
    by_hand(twin, optimizer, batches[:4])
    cut = remove(twin, structure, keep)
    after = recipe.build(cut.parameters())
    for (name, old), new in zip(twin.named_parameters(), cut.parameters(), strict=True):
        entries = {}
        for key, value in optimizer.state[old].items():
            for dim in range(value.dim()):  # by hand, from the table
                row = structure.table.get((name, dim))
                if row is not None:
                    value = value.index_select(
                        dim, torch.from_numpy(np.flatnonzero((row < 0) | keep[row]))
                    )
            entries[key] = value
        after.state[new] = entries
    by_hand(cut, after, batches[4:])
    assert_equal(smaller, cut)
