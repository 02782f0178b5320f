"""One ranking of the units of all groups, by the error of a unit for what it saves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lightning_modules.pruning.structure import Counts, Structure
from lightning_modules.pruning.thresholds import Scores

CostOfMany = Callable[[Counts], npt.NDArray[np.int64]]
"""A cost of plans, such as MACs: counts (..., n_groups) give costs of shape (...)."""
STEPS = 32
"""A group gives up its units in so many steps: the errors of single units are noisy."""


def by_saving(structure: Structure, errors: Scores, cost: CostOfMany) -> Scores:
    """The place of each unit in the order in which units go, from 1 on; shape (n_units,).

    `errors` are those behind a group when a unit and all with smaller errors are gone, as
    second-order scores are. From the dense model on, that group loses units whose additional error
    is least for the cost that they save at that size. So those who go first are an allocation of
    little error to the groups, for every size. The last unit of a group is the last to go. Whole
    blocks take no part, and keep their scores.
    Source: Shoham and Gersho 1988, "Efficient Bit Allocation for an Arbitrary Set of Quantizers",
    step by step, since what a unit saves depends on the size of the other groups.
    """
    places = errors.copy()
    order = _Order(structure, errors)
    kept = structure.sizes
    place = 0
    while (steps := order.steps(kept)).any():
        index = _cheapest(order.added(kept, steps), kept, steps, cost)
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

    def steps(self, kept: Counts) -> Counts:
        """How many units each group would lose next; shape (n_groups,)."""
        return np.minimum(self._usual, kept - self.least)

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


def _cheapest(added: Scores, kept: Counts, steps: Counts, cost: CostOfMany) -> int:
    """The group whose next step adds the least error for what it saves."""
    saved = cost(kept) - cost(kept - np.diag(steps))
    prices = np.where(steps > 0, added / np.maximum(saved, 1), np.inf)
    return int(np.argmin(prices))
