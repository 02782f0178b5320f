"""An environment as its user would write it, without a word about this project."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env[Any, Any]):
    """From place 0 to place 3, by steps to the left (0) and to the right (1).

    A step costs 1, and the last one gives 10.
    """

    observation_space = gymnasium.spaces.Box(-50.0, 50.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0
        return np.array([0.0], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 2 * int(action) - 1
        there = self.place == 3
        reward = 10.0 if there else -1.0
        return np.array([self.place], dtype=np.float32), reward, there, False, {}


gymnasium.register("Corridor-v0", Corridor, max_episode_steps=20)
gymnasium.register("Endless-v0", Corridor)
