"""One ranking of the units of all groups, by the error of a unit for what it saves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lightning_modules.pruning.structure import Counts, Structure
from lightning_modules.pruning.thresholds import Scores

CostOfMany = Callable[[Counts], npt.NDArray[np.int64]]
"""Cost of plans, such as MACs: counts of shape (..., n_groups) give costs of shape (...)."""
STEPS = 32
"""A group gives up its units in so many steps: the errors of single units are noisy."""


def by_saving(structure: Structure, errors: Scores, cost: CostOfMany, doublings: int = 0) -> Scores:
    """The place of each unit in the order in which units go, from 1 on; shape (n_units,).

    `errors` are those behind a group when a unit and all with smaller errors are gone, as
    second-order scores are. From the dense model on, that group loses units whose additional error
    is least for the cost that they save at that size. So those who go first are an allocation of
    little error to the groups, for every size. The last unit of a group is the last to go. Whole
    blocks take no part, and keep their scores.

    A cost may fall in stairs, as latencies do: a small step then saves nothing. A group may take
    its step doubled so many times at once (`doublings`), where that is cheaper.
    Source: Shoham and Gersho 1988, "Efficient Bit Allocation for an Arbitrary Set of Quantizers",
    step by step, since what a unit saves depends on the size of the other groups.
    """
    places = errors.copy()
    order = _Order(structure, errors)
    kept = structure.sizes
    place = 0
    while order.steps(kept).any():
        index, steps = _cheapest(order, kept, cost, doublings)
        for unit in order.units_at(index, kept, steps):
            place += 1
            places[unit] = place
        kept[index] -= steps[index]
    for index in range(len(kept)):
        places[order.units_at(index, kept, order.least)] = structure.n_units
    return places


class _Order:
    """The units of every group as they go, with the errors when they are gone."""

    def __init__(self, structure: Structure, errors: Scores) -> None:
        self._sizes = structure.sizes
        # a block has one unit: it never goes
        self.least = np.maximum(1, structure.least)
        self._usual = np.maximum(1, self._sizes // STEPS)
        self._units = []
        self._errors = []
        for group in structure.groups:
            order = np.argsort(errors[group.units], kind="stable")
            self._units.append(group.start + order)
            self._errors.append(np.concatenate([[0.0], errors[group.units][order]]))

    def steps(self, kept: Counts, factor: int = 1) -> Counts:
        """How many units each group would lose in so many steps; shape (n_groups,)."""
        steps: Counts = np.minimum(factor * self._usual, kept - self.least)
        return steps

    def units_at(self, index: int, kept: Counts, count: Counts) -> npt.NDArray[np.intp]:
        """The next units of a group."""
        gone = self._sizes[index] - kept[index]
        return self._units[index][gone : gone + count[index]]

    def added(self, kept: Counts, steps: Counts) -> Scores:
        """The error that the next step of each group adds; shape (n_groups,)."""
        gone = self._sizes - kept
        added = []
        for index, errors in enumerate(self._errors):
            added.append(errors[gone[index] + steps[index]] - errors[gone[index]])
        return np.array(added)


def _cheapest(order: _Order, kept: Counts, cost: CostOfMany, doublings: int) -> tuple[int, Counts]:
    """The group whose next units add the least error for what they save, and how many go.

    The numbers are those of all groups; shape (n_groups,).
    """
    choices = []
    for doubled in range(doublings + 1):
        steps = order.steps(kept, 2**doubled)
        prices = _prices(order.added(kept, steps), kept, steps, cost)
        choices.append((prices.min(), doubled, int(np.argmin(prices)), steps))
    _, _, index, steps = min(choices, key=lambda choice: choice[:2])
    return index, steps


def _prices(added: Scores, kept: Counts, steps: Counts, cost: CostOfMany) -> Scores:
    """The error that the next units of each group add for each unit of cost that they save."""
    saved = cost(kept) - cost(kept - np.diag(steps))
    prices: Scores = np.where(steps > 0, added / np.maximum(saved, 1), np.inf)
    return prices
