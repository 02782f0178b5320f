"""A budget in time: what a step costs on this machine, and how many of them each trial gets.

Longer targets come first, up to `search.chain.most_epochs` each, then trials around them. As
measured, steps that are inherited pay most (docs/decisions.md). A budget in epochs is shared out in
the same way, at one second per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 16
"""Optimizer steps of a target at least; where there would be fewer, there are fewer targets."""


@dataclass(frozen=True)
class Speed:
    """Seconds of an optimizer step, and of a trial beside its steps, at some FLOPs `ratios`.

    The ratios fall. Weights at zero save no time: a plan is timed by its FLOPs, whatever the axis
    of its study.
    """

    ratios: tuple[float, ...]
    step: tuple[float, ...]
    beside: tuple[float, ...]

    def step_at(self, ratio: float) -> float:
        return self._at(ratio, self.step)

    def beside_at(self, ratio: float) -> float:
        return self._at(ratio, self.beside)

    def price(self, ratio: float, steps: float) -> float:
        """Seconds of a trial with so many steps."""
        return steps * self.step_at(ratio) + self.beside_at(ratio)

    def steps(self, ratio: float, seconds: float) -> float:
        """Steps of a trial that takes so many seconds."""
        return max(0.0, (seconds - self.beside_at(ratio)) / self.step_at(ratio))

    def _at(self, ratio: float, values: Sequence[float]) -> float:
        """Interpolated over log FLOPs."""
        logs = np.log(self.ratios[::-1])
        return float(np.interp(np.log(ratio), logs, values[::-1]))


STEPWISE = Speed((1.0,), (1.0,), (0.0,))
"""Every step costs one; nothing else costs anything."""


@dataclass(frozen=True)
class Sharing:
    """How the chain's targets share the budget that is left: the same time each.

    So small models get more steps. No target gets more than `most` steps; what it leaves goes to
    the others.
    """

    most: float = math.inf

    def steps(self, speed: Speed, left: float, ratio: float, targets: Sequence[float]) -> float:
        """Steps of the target at `ratio` where all `targets`, it included, share `left` seconds."""
        open_targets = list(targets)
        while True:
            seconds = left / len(open_targets)
            full = [target for target in open_targets if speed.steps(target, seconds) > self.most]
            if not full or len(full) == len(open_targets):
                return min(self.most, speed.steps(ratio, seconds))
            left -= sum(speed.price(target, self.most) for target in full)
            open_targets = [target for target in open_targets if target not in full]


@dataclass(frozen=True)
class Ledger:
    """What trials have used and what is open; each entry is read anew whenever it is asked for.

    `spent` is the used part of the budget, on the scale of its measure. `open_targets` are the
    FLOPs ratios of the chain's plans that have not ended, the one at work first. `steps_done` are
    the optimizer steps of all trials so far.
    """

    spent: Callable[[], float]
    open_targets: Callable[[], Sequence[float]]
    steps_done: Callable[[], float]


class Pace:
    """How many steps a trial gets, so that the chain and what follows end with the budget.

    `chain` are the FLOPs ratios of its plans, `available` is the budget on the scale of `speed`,
    and `sharing` says how the targets that are left share what is left. The ledger is read between
    trials: where they take longer than `speed` says, those that follow get fewer steps.
    """

    def __init__(
        self,
        speed: Speed,
        chain: Sequence[float],
        available: float,
        sharing: Sharing,
        ledger: Ledger,
    ) -> None:
        self.speed = speed
        self.chain = tuple(chain)
        self.available = available
        self.sharing = sharing
        self.ledger = ledger
        self._took = self._expected = 0.0
        self._open: tuple[float, float, float] | None = None

    @property
    def slower(self) -> float:
        """How many times as long as by `speed` trials have taken."""
        if self._expected > 0.0:
            return self._took / self._expected
        return 1.0

    def __call__(self, ratio: float, rounds: int) -> int:
        """Optimizer steps, at least one, in each of a trial's `rounds` of finetuning.

        `ratio` is the plan's FLOPs ratio.
        """
        self._learn()
        ledger = self.ledger
        left = (self.available - ledger.spent()) / self.slower
        sharers = [ratio, *ledger.open_targets()[1:]]
        steps = self.sharing.steps(self.speed, left, ratio, sharers)
        self._open = (ledger.spent(), ledger.steps_done(), ratio)
        return max(1, int(steps) // rounds)

    def more(self) -> bool:
        """Whether there is time for another trial, or the chain is not done.

        Another trial is taken to be as long as the chain's targets.
        """
        if self.ledger.open_targets():
            return True
        self._learn()
        mean = float(np.exp(np.mean(np.log(self.chain))))
        price = self.slower * self.speed.price(mean, self.target_steps(mean))
        return price <= self.available - self.ledger.spent()

    def target_steps(self, ratio: float) -> int:
        """Steps of a target where the chain has all that is available; at most `sharing.most`."""
        steps = self.sharing.steps(self.speed, self.available, ratio, self.chain)
        return int(min(self.sharing.most, max(FEWEST, steps)))

    def _learn(self) -> None:
        """Learn the speed from all trials together.

        One trial that was held up does not starve the next.
        """
        if self._open is None:
            return
        begin, before, ratio = self._open
        self._open = None
        if self.ledger.steps_done() > before:
            self._took += self.ledger.spent() - begin
            steps = self.ledger.steps_done() - before
            self._expected += self.speed.price(ratio, steps)


class Unpaced:
    """The pace without a chain: trials have their configured length.

    There are no more of them where the mean trial would not end in time.
    """

    slower = 1.0

    def __init__(self, available: float, clock: Callable[[], float]) -> None:
        self.available = available
        self.clock = clock
        self.begin = clock()
        self.trials = 0

    def __call__(self, ratio: float, rounds: int) -> None:
        self.trials += 1

    def more(self) -> bool:
        used = self.clock()
        mean = (used - self.begin) / max(1, self.trials)
        return used + mean <= self.available


def fewer_targets(
    targets: Callable[[int], Sequence[float]],
    most: int,
    speed: Speed,
    available: float,
    sharing: Sharing,
) -> int:
    """The largest number of targets, up to `most`, at which each gets `FEWEST` steps; at least 3.

    `targets(count)` gives the FLOPs ratios of so many targets.
    """
    for count in range(most, 3, -1):
        ratios = targets(count)
        fewest = sharing.steps(speed, available, max(ratios), ratios)
        if fewest >= min(FEWEST, sharing.most):
            return count
    return min(most, 3)
