"""Targets are laid out above what can be reached, and no plan of the chain is run twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.structure import Group, Product, Structure
from orchestrator.search.space import SearchContext
from orchestrator.search.space.allocated import Allocation
from orchestrator.search.space.thresholds import Uniform
from orchestrator.search.studies.queue import enqueue_chain, queued
from orchestrator.settings import ChainSettings, within_reach


def context(fixed: int = 40) -> SearchContext:
    """Sixty units at a MAC each beside so many that stay: with 40, a plan reaches 41 %."""
    row = np.arange(60, dtype=np.int32)
    products = (Product("units", 1, (row,)), Product("rest", fixed, ()))
    structure = Structure((Group("a", 0, 60, (), True),), {}, products, (), (), 2, 1)
    cost = Cost(structure)
    dense, least = cost.macs(structure.sizes), cost.macs(structure.least)
    scores = np.linspace(0.5, 1.5, 60)
    return SearchContext(structure, cost.macs, dense, "quantile", scores, least_ratio=least / dense)


def test_a_range_below_what_can_be_reached_is_shares_of_what_can_go() -> None:
    assert within_reach(0.05, 0.7, 0.01) == (0.05, 0.7)
    assert within_reach(0.1, 0.9, 0.5) == pytest.approx((0.55, 0.9))
    assert within_reach(0.1, 0.5, 0.5) == pytest.approx((0.55, 0.75))


def test_the_chain_s_plans_are_different_and_reach_their_targets() -> None:
    here, space = context(), Allocation(offset=0.0)
    targets = ChainSettings(targets=6).ratios(None, here.least_ratio)
    kept = []
    for target in targets:
        params = space.chain(here, target)
        kept.append(space.kept(here, params).tolist())
        assert here.macs(np.array(kept[-1])) <= target * here.dense_macs + 1e-6
    assert len({tuple(counts) for counts in kept}) == 6


def test_the_space_begins_above_what_can_be_reached() -> None:
    ratio = Allocation().distributions(context())["flops_ratio"]
    assert isinstance(ratio, FloatDistribution)
    assert ratio.low == pytest.approx(0.41 + 0.59 * 0.05)
    assert ratio.high == 0.8
    whole = Allocation().distributions(context(fixed=0))["flops_ratio"]
    assert isinstance(whole, FloatDistribution)
    assert whole.low == 0.05


def test_a_plan_of_the_chain_is_enqueued_once() -> None:
    study = optuna.create_study()
    here = replace(context(), least_ratio=0.0)
    enqueue_chain(study, Uniform(), [here], [0.7, 0.3, 0.2, 0.1])
    thresholds = [params["threshold"] for params in queued(study)]
    assert len(thresholds) == 2
    assert thresholds[1] == pytest.approx(0.95)
