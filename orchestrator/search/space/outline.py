"""What a space knows of a method on a model, before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from optuna.distributions import BaseDistribution
from torch import nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.structure import Structure, isomorphic_classes
from lightning_modules.pruning.thresholds import Pools, Scores
from lightning_modules.pruning.weights import Weight, weight_structure
from orchestrator.search.space import Choices, SearchContext
from orchestrator.search.space.allocation import Sensitivity, TargetCost
from orchestrator.settings import MethodSettings, Settings
from orchestrator.settings.targets import LATENCY_TARGET

NANOSECONDS = 1e6
"""Nanoseconds of a millisecond."""


def outline(
    settings: Settings, structure: Structure, model: nn.Module
) -> dict[str, BaseDistribution]:
    """The dimensions that the sampler is asked for, by name.

    They depend on nothing that costs something to know.
    """
    contexts = {}
    for method in settings.method.choices():
        contexts[method.name] = within_study(unscored(method, structure, model), settings)
    choices = Choices(settings.space.build(), settings.method, contexts)
    first = next(iter(contexts.values()))
    return choices.distributions(first)


def unscored(method: MethodSettings, structure: Structure, model: nn.Module) -> SearchContext:
    """The context of a method and of its further stages, without scores and sensitivity.

    `structure` is of units.
    """
    own = on_weights(structure, model, method) or structure
    then = None if method.then is None else unscored(method.then, structure, model)
    return context_of(method, own, model, np.ones(own.n_units), then=then)


def context_of(
    method: MethodSettings,
    structure: Structure,
    model: nn.Module,
    scores: Scores,
    sensitivity: Sensitivity | None = None,
    then: SearchContext | None = None,
) -> SearchContext:
    """What spaces know of one stage of a method.

    `structure` is of the stage's units, or of its weight tensors.
    """
    macs = Cost(structure).macs
    return SearchContext(
        structure=structure,
        macs=macs,
        dense_macs=macs(structure.sizes),
        rule=method.rule,
        scores=scores,
        sensitivity=sensitivity,
        pools=None if method.scope == "local" else pools_of(structure, method, model),
        round_to=method.rounding,
        method=method.name,
        then=then,
        weight=None if method.removes_units else weight_of(method),
    )


def within_study(
    context: SearchContext, settings: Settings, cost: TargetCost | None = None
) -> SearchContext:
    """The context with the study's demands on every plan.

    These are the largest ratio, and how many blocks the chain drops. The smallest ratio is known
    where units go and nothing else: one method, without a second stage. Targets are ratios of
    `cost`; before a latency can be estimated they have its name and are shared out by MACs.
    """
    then = None if context.then is None else within_study(context.then, settings)
    largest = settings.objectives.largest_ratio
    if settings.target == LATENCY_TARGET:
        largest = None
    if cost is not None and cost.name == LATENCY_TARGET:
        dense = cost.of(context.structure.sizes)
        largest = settings.objectives.largest_latency_ratio(dense / NANOSECONDS)
        context = replace(context, macs=cost.of, dense_macs=dense)
    return replace(
        context,
        target=settings.target,
        largest_ratio=largest or 1.0,
        depth=settings.search.chain.depth,
        least_ratio=_least_ratio(context, settings),
        then=then,
    )


def _least_ratio(context: SearchContext, settings: Settings) -> float:
    """The ratio of the plan that keeps as few units as the method allows; 0 where others go too."""
    units_alone = context.then is None and context.weight is None
    if not units_alone or len(settings.method.choices()) > 1 or settings.method.activation:
        return 0.0
    return context.macs(context.round(context.structure.least)) / context.dense_macs


def on_weights(structure: Structure, model: nn.Module, method: MethodSettings) -> Structure | None:
    """The weight tensors of a method that prunes single weights; None where it prunes units."""
    if method.removes_units:
        return None
    return weight_structure(structure, structure.full(), model, weight_of(method))


def weight_of(method: MethodSettings) -> Weight:
    """How the method counts single weights."""
    assert method.granularity != "unit"
    return Weight(method.granularity, method.shape or (1, 1))


def pools_of(structure: Structure, method: MethodSettings, model: nn.Module) -> Pools:
    """Groups whose units are compared with one another under the method's scope.

    Blocks are compared with none.
    """
    groups = structure.groups
    if method.scope == "local":
        return [[index] for index in range(len(groups))]
    alone = []
    ranked = []
    for index, group in enumerate(groups):
        if group.kind in ("block", "pattern"):
            alone.append([index])
        else:
            ranked.append(index)
    if method.scope in ("global", "per_mac"):
        return [ranked, *alone] if ranked else alone
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    pools: dict[object, list[int]] = {}
    for number, members in enumerate(isomorphic_classes(structure)):
        for index in members:
            if index in ranked:
                # tensors of single weights are of one size in a class, and here of one shape too
                key = (number, shapes.get(groups[index].name))
                pools.setdefault(key, []).append(index)
    return [*pools.values(), *alone]
