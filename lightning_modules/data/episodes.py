"""Episodes of a Gymnasium environment: batches say which ones, and the task plays them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lightning_modules.errors import ConfigError

SEEDS = "seeds"
"""The name of a batch's seeds (n,), one for each environment."""
UPDATE = "update"
"""The name of an update's number within its rollout. Batches without it are whole episodes."""
FIRST_HELD_OUT = 2**30
"""Seeds from here on are those of validation and test episodes; all below are for training."""


class Rollouts:
    """The batches of a rollout: one for each update that learns from it.

    Each pass is another rollout.
    """

    def __init__(self, environments: int, updates: int, seed: int) -> None:
        self.environments = environments
        self.updates = updates
        self.seed = seed
        self.passes = 0

    def __len__(self) -> int:
        return self.updates

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        drawn = int(np.random.SeedSequence([self.seed, self.passes]).generate_state(1)[0])
        self.passes += 1
        first = drawn % (FIRST_HELD_OUT - self.environments)
        seeds = torch.arange(first, first + self.environments)
        for update in range(self.updates):
            yield {SEEDS: seeds, UPDATE: torch.tensor(update)}


class Episodes(LightningDataModule):
    """Seeds of episodes of a Gymnasium environment, named as `gymnasium.make` takes it.

    A training batch stands for one of the `updates` that learn from a rollout: `steps` steps of
    `environments` environments side by side. An epoch is a rollout. Validation and test data are
    one batch each, of as many `episodes`; `seed` chooses them, and no seed is in both.
    Errors: ConfigError for a number below 1; in `setup`, for an environment that cannot be used.
    """

    def __init__(
        self,
        environment: str = "CartPole-v1",
        environments: int = 16,
        steps: int = 256,
        updates: int = 16,
        episodes: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        numbers = {
            "environments": environments,
            "steps": steps,
            "updates": updates,
            "episodes": episodes,
        }
        for name, number in numbers.items():
            if number < 1:
                raise ConfigError(f"data.{name} must be at least 1; got {number}")
        self.environment = environment
        self.environments = environments
        self.steps = steps
        self.updates = updates
        self.episodes = episodes
        self.seed = seed
        self.actions = 0
        self.longest = 0

    def setup(self, stage: str | None = None) -> None:
        """Read `actions`, how many there are, and `longest`, the most steps of an episode."""
        if self.actions:
            return
        specification = _specification(self.environment)
        _check_spaces(self.environment, self.vector(1))
        if specification.max_episode_steps is None:
            raise ConfigError(
                "an episode must end, so that a validation does; "
                f"{self.environment} is registered without max_episode_steps: "
                "give gymnasium.register this argument"
            )
        self.longest = specification.max_episode_steps
        self.actions = int(self.vector(1).single_action_space.n)

    def vector(self, count: int) -> Any:
        """`count` environments side by side, which have never been played.

        Those of an earlier play will not do: CartPole's keep which episodes had ended at a reset.
        """
        return _vector(self.environment, count)

    def train_batches(self, seed: int) -> Rollouts:
        return Rollouts(self.environments, self.updates, seed)

    def ordered_batches(self) -> Rollouts:
        return self.train_batches(0)

    def train_dataloader(self) -> Rollouts:
        return self.train_batches(self.seed)

    def val_dataloader(self) -> WholeEpisodes:
        return self._held_out(0)

    def test_dataloader(self) -> WholeEpisodes:
        return self._held_out(1)

    def _held_out(self, part: int) -> WholeEpisodes:
        first = FIRST_HELD_OUT + (2 * self.seed + part) * self.episodes
        return WholeEpisodes(torch.arange(first, first + self.episodes))


class WholeEpisodes:
    """One batch: an episode for each of the seeds (n,), from its begin to its end."""

    def __init__(self, seeds: Tensor) -> None:
        self.seeds = seeds

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield {SEEDS: self.seeds}


def _gymnasium() -> Any:
    """Errors: ConfigError where it is not installed."""
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":
            raise
        raise ConfigError(
            "data.environment is one of Gymnasium's, which is not installed; install it with pip "
            "install 'pruning-orchestrator[control]'"
        ) from error
    return gymnasium


def _specification(name: str) -> Any:
    """What an environment is registered with. Errors: ConfigError for an unknown one."""
    gymnasium = _gymnasium()
    module, _, registered = name.rpartition(":")
    if module:
        _import(name, module)
    try:
        return gymnasium.spec(registered)
    except gymnasium.error.Error as error:
        raise ConfigError(
            "data.environment must be registered with Gymnasium, as CartPole-v1, or "
            f"my_package:MyEnv-v0, where importing my_package registers it; got {name}: {error}"
        ) from error


def _import(name: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"data.environment={name} imports {module}, which registers it: {error}; install it, "
            "or add its folder to PYTHONPATH"
        ) from error


def _vector(name: str, count: int) -> Any:
    """Gymnasium's own vector environment where there is one, else one after another.

    Errors: ConfigError for an environment that cannot be made.
    """
    gymnasium = _gymnasium()
    specification = _specification(name)
    options: dict[str, Any] = {}
    if specification.vector_entry_point is None:
        options = {"vectorization_mode": "sync", "disable_env_checker": True}
    try:
        return gymnasium.make_vec(specification, num_envs=count, **options)
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"data.environment={name} cannot be made: {error}") from error


def _check_spaces(name: str, environments: Any) -> None:
    """Errors: ConfigError for observations that are no box, or actions that are no choice."""
    spaces = _gymnasium().spaces
    observations = environments.single_observation_space
    if not isinstance(observations, spaces.Box):
        raise ConfigError(
            f"observations must be a Box, an array of numbers; those of {name} are "
            f"{observations}: register it with additional_wrappers such as FlattenObservation"
        )
    actions = environments.single_action_space
    if not isinstance(actions, spaces.Discrete):
        raise ConfigError(
            f"actions must be Discrete, a choice among some; those of {name} are {actions}: "
            "register it with a wrapper that makes such a choice, or bring your own "
            "LightningModule (docs/own-model.md)"
        )
