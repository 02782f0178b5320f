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
    """Seconds of an optimizer step, and of a trial beside its steps, at FLOPs `ratios` (falling).

    Weights at zero save no time: a plan has its place here by FLOPs, whatever the axis of its study.
    """

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


def share(speed: Speed, left: float, ratio: float, others: Sequence[float], even: str) -> float:
    """The steps of one rung where it and the others take up what is left."""
    rungs = [ratio, *others]
    if even == "time":
        return max(0.0, left / len(rungs) - speed.beside_at(ratio)) / speed.step_at(ratio)
    beside = sum(map(speed.beside_at, rungs))
    return max(0.0, left - beside) / sum(map(speed.step_at, rungs))


class Pace:
    """How many steps a trial gets, so that the chain and what follows end with the budget.

    `clock` gives what is used up, in the unit of `available` and of `speed`; it is read between trials, and where they
    take longer than `speed` says, those that follow get fewer steps. `chain` are the FLOPs ratios of its rungs, `left`
    tells those of rungs that have not ended, the one at work first; `steps_done` tells the steps of all trials so far.
    With `even` "time" all rungs get the same time, small ones thus more steps, else the same number of steps.
    """

    def __init__(
        self,
        speed: Speed,
        chain: Sequence[float],
        available: float,
        most_steps: int,
        clock: Callable[[], float],
        left: Callable[[], Sequence[float]],
        steps_done: Callable[[], float],
        even: str = "time",
    ) -> None:
        self.speed, self.chain, self.available, self.most_steps = speed, tuple(chain), available, most_steps
        self.clock, self.left, self.steps_done, self.even = clock, left, steps_done, even
        self._took = self._expected = 0.0
        self._open: tuple[float, float, float] | None = None

    @property
    def slower(self) -> float:
        """How many times as long as by `speed` trials have taken."""
        return self._took / self._expected if self._expected > 0.0 else 1.0

    def __call__(self, ratio: float, units: int) -> int:
        """Optimizer steps, at least one, in each of a trial's `units` units of finetuning; `ratio` is that of FLOPs."""
        self._learn()
        left = (self.available - self.clock()) / self.slower
        steps = share(self.speed, left, ratio, self.left()[1:], self.even)
        self._open = (self.clock(), self.steps_done(), ratio)
        return max(1, int(min(self.most_steps, steps)) // units)

    def more(self) -> bool:
        """Whether the chain is not done, or another trial as long as its rungs would end in time."""
        if self.left():
            return True
        self._learn()
        mean = float(np.exp(np.mean(np.log(self.chain))))
        return self.slower * self._price(mean, self.rung_steps(mean)) <= self.available - self.clock()

    def rung_steps(self, ratio: float) -> int:
        """Steps of a rung where the chain has all that is available, or as many as are wanted."""
        return int(
            min(self.most_steps, max(FEWEST, share(self.speed, self.available, ratio, self.chain[1:], self.even)))
        )

    def _price(self, ratio: float, steps: float) -> float:
        return steps * self.speed.step_at(ratio) + self.speed.beside_at(ratio)

    def _learn(self) -> None:
        """From all trials together: one that was held up does not starve the next."""
        if self._open is None:
            return
        begin, before, ratio = self._open
        self._open = None
        if (steps := self.steps_done() - before) > 0.0:
            self._took += self.clock() - begin
            self._expected += self._price(ratio, steps)


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


def fewer_rungs(rungs: Callable[[int], Sequence[float]], most: int, speed: Speed, available: float, even: str) -> int:
    """The largest count up to `most` at which each of `rungs(count)` (FLOPs ratios) gets `FEWEST` steps; at least 3."""
    for count in range(most, 3, -1):
        found = rungs(count)
        if share(speed, available, max(found), sorted(found)[:-1], even) >= FEWEST:  # the dearest gets the fewest
            return count
    return min(most, 3)
