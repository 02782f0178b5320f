"""The ranking of units by their error for each MAC that they save."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.saving import by_saving
from lightning_modules.pruning.structure import Counts, Structure
from lightning_modules.pruning.thresholds import Scores, choose
from tests.structures import small_resnet


@pytest.fixture(scope="module")
def structure() -> Structure:
    return small_resnet()


@pytest.fixture(scope="module")
def errors(structure: Structure) -> Scores:
    """Cumulative errors of each group, in an order of their own."""
    draw = np.random.default_rng(0)
    scores = np.zeros(structure.n_units)
    for group in structure.groups:
        cumulative = np.cumsum(draw.exponential(size=group.size))
        scores[group.units] = draw.permutation(cumulative)
    return scores


@pytest.fixture(scope="module")
def places(structure: Structure, errors: Scores) -> Scores:
    return by_saving(structure, errors, Cost(structure).macs_batch)


def test_every_unit_but_the_last_of_each_group_has_a_place_of_its_own(
    structure: Structure, places: Scores
) -> None:
    going = structure.n_units - len(structure.groups)
    assert sorted(places[places < structure.n_units]) == list(range(1, going + 1))
    for group in structure.groups:
        assert (places[group.units] == structure.n_units).sum() == 1


def test_units_of_one_group_go_in_the_order_of_their_errors(
    structure: Structure, errors: Scores, places: Scores
) -> None:
    for group in structure.groups:
        assert (np.argsort(errors[group.units]) == np.argsort(places[group.units])).all()


def test_a_prefix_is_better_than_equal_ratios_at_the_same_macs(
    structure: Structure, errors: Scores, places: Scores
) -> None:
    macs = Cost(structure).macs
    for ratio in (0.25, 0.5, 0.75):
        even = np.maximum(1, np.rint(structure.sizes * ratio)).astype(np.int64)
        ours = counts_within(structure, places, macs(even))
        assert error_of(structure, errors, ours) < error_of(structure, errors, even)


def counts_within(structure: Structure, places: Scores, macs: int) -> Counts:
    for level in range(structure.n_units):
        kept = [(places[group.units] > level).sum() for group in structure.groups]
        if Cost(structure).macs(np.array(kept)) <= macs:
            return np.array(kept)
    raise AssertionError("no prefix of the ranking is small enough")


def error_of(structure: Structure, errors: Scores, kept: Counts) -> float:
    """The summed error of a model with these units."""
    keep = choose(structure, errors, structure.full(), kept)
    total = 0.0
    for group in structure.groups:
        gone = ~keep[group.units]
        total += errors[group.units][gone].max(initial=0.0)
    return total


def test_of_equal_errors_the_group_that_saves_more_goes_first(structure: Structure) -> None:
    equal = np.zeros(structure.n_units)
    for group in structure.groups:
        equal[group.units] = np.arange(1.0, group.size + 1.0)
    prices = np.arange(1, len(structure.groups) + 1) ** 4

    def macs(kept: Counts) -> npt.NDArray[np.int64]:
        return np.asarray(kept @ prices)

    places = by_saving(structure, equal, macs)
    middles = [np.median(places[group.units]) for group in structure.groups]
    assert middles == sorted(middles, reverse=True)
