"""Playing: a policy in environments side by side, and what can be learned from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

GAE_LAMBDA = 0.95
"""How far ahead rewards count for an advantage, beside the discount: lambda of GAE."""
LEAST_SPREAD = 1e-6
"""Advantages are divided by at least this deviation."""

Array = npt.NDArray[Any]
Policy = Callable[[Array], tuple[Array, Array]]
"""Maps observations (n, ...) to log-probabilities (n, actions) and values (n,)."""


@dataclass(frozen=True)
class Play:
    """What happened, time in front: (steps, n); observations and values have one step more.

    `counts` is False where an environment began anew instead of taking its action.
    """

    observations: Array
    values: Array
    actions: Array
    log_probabilities: Array
    rewards: Array
    terminated: Array
    ended: Array
    counts: Array

    def returns(self) -> Array:
        """The sum of the rewards of each environment's first episode, shape (n,)."""
        ended_before = np.cumsum(self.ended, 0) - self.ended
        return (self.rewards * (ended_before == 0)).sum(0)


def play(policy: Policy, environments: Any, seed: int, steps: int, explore: bool) -> Play:
    """Play `steps` steps of Gymnasium's `environments`, which begin anew one step after an end.

    With `explore` actions are drawn from the policy, else they are the most probable ones, and the
    play is over when every environment's first episode is. All that is random follows from `seed`.
    """
    generator = np.random.default_rng(seed)
    offset = int(environments.single_action_space.start)
    observations, _ = environments.reset(seed=seed)
    begins = np.zeros(environments.num_envs, dtype=bool)
    over = begins
    rows: list[tuple[Array, ...]] = []
    for _ in range(steps):
        log_probabilities, values = policy(observations)
        actions = _drawn(log_probabilities, generator) if explore else log_probabilities.argmax(1)
        following, rewards, terminated, truncated, _ = environments.step(actions + offset)
        taken = np.take_along_axis(log_probabilities, actions[:, None], 1)[:, 0]
        ended = terminated | truncated
        rows.append((observations, values, actions, taken, rewards, terminated, ended, ~begins))
        observations, begins, over = following, ended, over | ended
        if over.all() and not explore:
            break
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    seen, values = columns[0], columns[1]
    seen = np.concatenate([seen, observations[None]])
    values = np.concatenate([values, policy(observations)[1][None]])
    return Play(seen, values, *columns[2:])


def _drawn(log_probabilities: Array, generator: np.random.Generator) -> Array:
    """An action for each row, shape (n,)."""
    below = np.exp(log_probabilities.astype(np.float64)).cumsum(1)[:, :-1]
    return (below < generator.random((len(below), 1))).sum(1)


def advantages(played: Play, discount: float) -> Array:
    """How much better than the values each step turned out, shape (steps, n).

    Values, and so advantages, are in units of a reward: a return divided by 1 / (1 - discount).
    Source: Schulman et al. 2016 (generalised advantage estimation), eq. 16.
    """
    result = np.zeros_like(played.rewards, dtype=np.float64)
    ahead = np.zeros(result.shape[1])
    for step in reversed(range(len(result))):
        following = discount * played.values[step + 1] * ~played.terminated[step]
        surprise = (1.0 - discount) * played.rewards[step] + following - played.values[step]
        ahead = surprise + discount * GAE_LAMBDA * ~played.ended[step] * ahead
        result[step] = ahead
    return result


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block the model is in eval mode, without gradients."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def transitions(played: Play, discount: float) -> dict[str, Tensor]:
    """The steps that count, in a row: tensors (m, ...) by name.

    `observations` as the environment gives them, `actions`, `log_probabilities`, `advantages` of
    mean 0 and deviation 1, and `targets` for the values.
    """
    better = advantages(played, discount)
    counts = torch.from_numpy(played.counts)
    columns = {
        "observations": played.observations[:-1],
        "actions": played.actions,
        "log_probabilities": played.log_probabilities,
        "advantages": better,
        "targets": better + played.values[:-1],
    }
    rows = {name: torch.from_numpy(column)[counts] for name, column in columns.items()}
    for name in ("log_probabilities", "advantages", "targets"):
        rows[name] = rows[name].float()
    spread = rows["advantages"].std(correction=0).clamp_min(LEAST_SPREAD)
    rows["advantages"] = (rows["advantages"] - rows["advantages"].mean()) / spread
    return rows
