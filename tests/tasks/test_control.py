"""Control: returns of policies made by hand, what an update learns from, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_modules.data import Episodes
from lightning_modules.errors import ConfigError
from lightning_modules.models import ActorCritic
from lightning_modules.tasks import Control
from lightning_modules.tasks.contract import check_outputs, step_loss, to_device, validated
from lightning_modules.tasks.control import SHARE
from lightning_modules.tasks.rollouts import GAE_LAMBDA, Play, advantages, transitions

CPU = torch.device("cpu")
CORRIDOR = "tests.tasks.corridor:Corridor-v0"


class Says(nn.Module):
    """A policy made by hand: the weights of an observation decide between two actions."""

    def __init__(self, *weights: float, bias: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))
        self.bias = bias

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        right = x @ self.weights + self.bias
        return {"policy": torch.stack([-right, right], 1), "value": torch.zeros(len(x))}


def control(model: nn.Module, environment: str = "CartPole-v1", **sizes: int) -> Control:
    data = Episodes(environment, **{"environments": 4, "steps": 32, "episodes": 6, **sizes})
    data.setup()
    return Control(model, data)


def mean_return(task: Control, test: bool = False) -> float:
    loader = task.data.test_dataloader() if test else task.data.val_dataloader()
    (batch,) = loader
    return float(validated(task, to_device(task, batch, CPU))["mean_return"].compute())


def first_batch(task: Control, seed: int = 0) -> dict[str, Tensor]:
    return to_device(task, next(iter(task.data.train_batches(seed))), CPU)


@pytest.mark.parametrize(
    ("bias", "expected"), [(1.0, -1.0 - 1.0 + 10.0), (-1.0, -20.0)], ids=["right", "left"]
)
def test_the_return_of_an_environment_of_ones_own_is_that_of_its_rewards(
    bias: float, expected: float
) -> None:
    """The way to the right takes three steps; that to the left ends by the limit of 20."""
    assert mean_return(control(Says(0.0, bias=bias), CORRIDOR)) == pytest.approx(expected)


def test_a_pole_that_is_pushed_after_its_fall_stands_and_one_pushed_aside_falls() -> None:
    """The force goes where the pole falls to; a little of it brings the cart back."""
    assert mean_return(control(Says(0.05, 0.2, 5.0, 1.0))) == 500.0
    assert 8.0 <= mean_return(control(Says(0.0, 0.0, 0.0, 0.0, bias=1.0))) <= 11.0


def test_a_play_follows_from_its_seeds_and_the_network_alone() -> None:
    task = control(ActorCritic(4, 2, width=8))
    once = {name: rows.clone() for name, rows in first_batch(task).items()}
    mean_return(task)
    first_batch(task, seed=1)
    again = first_batch(task)
    assert all(torch.equal(rows, again[name]) for name, rows in once.items())
    assert mean_return(task) == mean_return(task)
    assert not torch.equal(first_batch(task, seed=1)["observations"], once["observations"])


def test_training_validation_and_test_play_other_episodes() -> None:
    data = Episodes(episodes=100, seed=3)
    train = [int(seed) for batch in data.train_batches(0) for seed in batch["seeds"]]
    (val,), (test,) = data.val_dataloader(), data.test_dataloader()
    assert len(set(val["seeds"].tolist()) | set(test["seeds"].tolist())) == 200
    assert max(train) < int(val["seeds"].min())
    passes = data.train_batches(0)
    assert next(iter(passes))["seeds"][0] != next(iter(passes))["seeds"][0]


def test_the_updates_of_a_rollout_share_one_play_and_the_next_one_plays_anew() -> None:
    task = control(Says(0.0, 0.0, 0.0, 0.0, bias=0.1), updates=3)
    plays: list[int] = []
    vector = task.data.vector
    task.data.vector = lambda count: plays.append(count) or vector(count)
    batches = task.data.train_batches(0)
    parts = [to_device(task, batch, CPU) for batch in batches]
    assert plays == [4]
    assert len(parts) == 3
    assert {len(part["actions"]) for part in parts} <= set(range(20, 1 + 4 * 32 // SHARE))
    list(to_device(task, batch, CPU) for batch in batches)
    assert plays == [4, 4]


def test_playing_leaves_modes_and_gradients_as_they_were() -> None:
    network = nn.Sequential(nn.Dropout(0.5), ActorCritic(4, 2, width=8))
    network[1].eval()
    task = control(network)
    batch = first_batch(task)
    assert network[0].training
    assert not network[1].training
    assert not any(rows.requires_grad for rows in batch.values())
    loss = step_loss(task, batch)
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_actions_that_turned_out_well_become_more_probable() -> None:
    """In the corridor that is the way to the right."""
    torch.manual_seed(1)
    task = control(ActorCritic(1, 2, width=8), CORRIDOR, environments=16, steps=64)
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    for _ in range(3):
        for batch in task.data.train_batches(0):
            optimizer.zero_grad()
            step_loss(task, to_device(task, batch, CPU)).backward()
            optimizer.step()
    assert mean_return(task, test=True) == pytest.approx(8.0)


def played(rewards: list[float], terminated: list[bool], ended: list[bool]) -> Play:
    steps = len(rewards)

    def column(values: list[Any]) -> Any:
        return np.array(values)[:, None]

    return Play(
        observations=np.arange(float(steps + 1))[:, None, None],
        values=column([0.5] * (steps + 1)),
        actions=column([0] * steps),
        log_probabilities=column([-0.7] * steps),
        rewards=column(rewards),
        terminated=column(terminated),
        ended=column(ended),
        counts=column([True] * steps),
    )


def test_advantages_are_those_of_the_formula() -> None:
    """Behind an end of the game comes nothing; behind the limit of steps the value goes on."""
    half = 0.5
    no = [False, False]
    end = [False, True]
    ahead = half * 2.0 + half * 0.5 - 0.5  # of the second step, if the game goes on
    first = half * 1.0 + half * 0.5 - 0.5
    for terminated, ended, last in ((no, no, ahead), (no, end, ahead), (end, end, half * 2 - 0.5)):
        better = advantages(played([1.0, 2.0], terminated, ended), half)[:, 0]
        assert better == pytest.approx([first + half * GAE_LAMBDA * last, last])
    parted = advantages(played([1.0, 2.0], [True, False], [True, False]), half)[:, 0]
    assert parted == pytest.approx([half * 1.0 - 0.5, ahead])


def test_returns_are_those_of_first_episodes_and_new_beginnings_are_left_out() -> None:
    play = played([1.0, 2.0, 4.0], [False, True, False], [False, True, False])
    assert play.returns() == pytest.approx([3.0])
    play.counts[2] = False
    rows = transitions(play, 0.9)
    assert rows["observations"].flatten().tolist() == [0.0, 1.0]
    assert rows["advantages"].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert rows["advantages"].std(correction=0).item() == pytest.approx(1.0)


def test_equal_policies_do_not_diverge() -> None:
    task = control(ActorCritic(4, 2, width=8))
    outputs = {"policy": torch.randn(5, 2), "value": torch.randn(5)}
    other = {**outputs, "value": torch.randn(5)}
    assert task.divergence(outputs, outputs).item() == pytest.approx(0.0, abs=1e-6)
    assert task.divergence(other, outputs).item() > 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPole-v", r"must be registered with Gymnasium, as CartPole-v1, or my_package"),
        ("nowhere.at_all:My-v0", r"imports nowhere.at_all, which registers it: No module"),
        ("Pendulum-v1", r"actions must be Discrete.*those of Pendulum-v1 are Box"),
        ("FrozenLake-v1", r"observations must be a Box.*those of FrozenLake-v1 are Discrete"),
        ("tests.tasks.corridor:Endless-v0", r"is registered without max_episode_steps: give"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_with_a_remedy(
    name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Episodes(name).setup()


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"pip install 'pruning-orchestrator\[control\]'"):
        Episodes().setup()


def test_numbers_below_one_and_a_discount_of_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.steps must be at least 1; got 0"):
        Episodes(steps=0)
    with pytest.raises(ConfigError, match=r"task.discount must lie in \[0, 1\); got 1.0"):
        Control(ActorCritic(4, 2), Episodes(), discount=1.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ActorCritic(6, 2), r"take the data's inputs \(6, 4\).*such as model.features"),
        (ActorCritic(4, 3), r"'policy': \(2,\), 'value': \(\).*see model.actions"),
        (nn.Linear(4, 2), r"they are a Tensor; see model.actions"),
    ],
)
def test_a_network_that_does_not_fit_the_environment_is_told(
    model: nn.Module, message: str
) -> None:
    task = control(model)
    with pytest.raises(ConfigError, match=message):
        check_outputs(task, next(iter(task.data.val_dataloader())))
