"""A budget in time: what a step costs on this machine, and how many of them each trial gets.

Longer rungs come first, up to `search.chain.most_epochs` each, then trials around them: measured, steps that are
inherited pay most (docs/decisions.md). A budget in epochs is shared out alike, at one second per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 16
"""Steps of a rung; below that there are fewer rungs."""


@dataclass(frozen=True)
class Speed:
    """Seconds of an optimizer step, and of a trial beside its steps, at FLOPs `ratios` (falling)."""

    ratios: tuple[float, ...]
    step: tuple[float, ...]
    beside: tuple[float, ...]

    def step_at(self, ratio: float) -> float:
        return self._at(ratio, self.step)

    def beside_at(self, ratio: float) -> float:
        return self._at(ratio, self.beside)

    def _at(self, ratio: float, values: Sequence[float]) -> float:
        return float(np.interp(np.log(ratio), np.log(self.ratios[::-1]), values[::-1]))


STEPWISE = Speed((1.0,), (1.0,), (0.0,))
"""Every step costs one, nothing else costs anything."""


class Pace:
    """How many steps a trial gets, so that the chain and what follows end with the budget.

    `clock` gives what is used up, in the unit of `available` and of `speed`; it is read between trials, and where they
    take longer than `speed` says, those that follow get fewer steps. `chained` says that the chain is already done.
    """

    def __init__(
        self,
        speed: Speed,
        targets: Sequence[float],
        available: float,
        most_steps: int,
        clock: Callable[[], float],
        ladders: int = 1,
        chained: bool = False,
        even: str = "time",
    ) -> None:
        self.speed, self.targets, self.available, self.clock = speed, tuple(targets), available, clock
        self.most_steps, self.ladders, self.chained = most_steps, ladders, chained
        self.even = even
        self.slower, self._open = 1.0, (0.0, 0.0)

    def __call__(self, ratio: float, units: int) -> int:
        """Optimizer steps in each of a trial's `units` units, at least one."""
        self._learn()
        left = self.available - self.clock()
        rungs = [target for target in self.targets if target <= 1.02 * ratio]
        if self.chained or not rungs:
            steps = (left / self.slower - self.speed.beside_at(ratio)) / self.speed.step_at(ratio)
        else:
            self.chained = len(rungs) == 1 and self.ladders == 1
            left /= self.slower * self.ladders
            equally = (left / len(rungs) - self.speed.beside_at(ratio)) / self.speed.step_at(ratio)
            steps = self._evenly(left, rungs) if self.even == "steps" else equally
        steps = int(min(self.most_steps, max(units, steps)))
        self._open = (self.clock(), self._price(ratio, steps))
        return max(1, steps // units)

    def more(self) -> bool:
        """Whether another trial of the chain's length would end in time, or the chain is not done."""
        if not self.chained:
            return True
        self._learn()
        steps = min(self.most_steps, max(FEWEST, self._evenly(self.available, self.targets)))
        mean = float(np.exp(np.mean(np.log(self.targets))))
        return self.slower * self._price(mean, int(steps)) <= self.available - self.clock()

    def _evenly(self, left: float, rungs: Sequence[float]) -> float:
        """The number of steps that, the same on all rungs, takes up what is left."""
        beside = sum(map(self.speed.beside_at, rungs))
        return max(0.0, left - beside) / sum(map(self.speed.step_at, rungs))

    def _price(self, ratio: float, steps: int) -> float:
        return steps * self.speed.step_at(ratio) + self.speed.beside_at(ratio)

    def _learn(self) -> None:
        begin, expected = self._open
        if expected > 0.0:
            self.slower = 0.5 * self.slower + 0.5 * (self.clock() - begin) / expected
            self._open = (0.0, 0.0)


class Unpaced:
    """Trials as long as configured until another of their mean length would not end in time: a search without chain."""

    slower = 1.0

    def __init__(self, available: float, clock: Callable[[], float]) -> None:
        self.available, self.clock, self.begin, self.trials = available, clock, clock(), 0

    def __call__(self, ratio: float, units: int) -> None:
        self.trials += 1

    def more(self) -> bool:
        used = self.clock()
        return used + (used - self.begin) / max(1, self.trials) <= self.available


def fewer_rungs(targets: Callable[[int], Sequence[float]], rungs: int, speed: Speed, available: float) -> list[float]:
    """`targets(n)` for the largest n up to `rungs` at which a rung gets `FEWEST` steps; never under 3 of them."""
    for count in range(rungs, 3, -1):
        found = targets(count)
        beside = sum(map(speed.beside_at, found))
        if available - beside >= FEWEST * sum(map(speed.step_at, found)):
            return list(found)
    return list(targets(min(rungs, 3)))
