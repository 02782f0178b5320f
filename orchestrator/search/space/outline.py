"""What a space knows of a method on a model, and the dimensions of a search before anything is
trained.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from optuna.distributions import BaseDistribution
from torch import nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.structure import Structure, isomorphic_classes
from lightning_modules.pruning.thresholds import Pools, Scores
from lightning_modules.pruning.weights import Weight, weight_structure
from orchestrator.search.space import Choices, Terrain
from orchestrator.search.space.allocation import Sensitivity
from orchestrator.settings import MethodSettings, Settings


def outline(
    settings: Settings, structure: Structure, model: nn.Module
) -> dict[str, BaseDistribution]:
    """What the sampler is asked for, by name; the dimensions depend on nothing that costs something
    to know.
    """
    terrains = {
        method.name: within_study(unscored(method, structure, model), settings)
        for method in settings.method.choices()
    }
    choices = Choices(settings.space.build(), settings.method, terrains)
    return choices.distributions(next(iter(terrains.values())))


def unscored(method: MethodSettings, structure: Structure, model: nn.Module) -> Terrain:
    """The terrain of a method and of the stages behind it, without scores and sensitivity;
    `structure` is of units.
    """
    own = on_weights(structure, model, method) or structure
    then = None if method.then is None else unscored(method.then, structure, model)
    return terrain_of(method, own, model, np.ones(own.n_units), then=then)


def terrain_of(
    method: MethodSettings,
    structure: Structure,
    model: nn.Module,
    scores: Scores,
    sensitivity: Sensitivity | None = None,
    then: Terrain | None = None,
) -> Terrain:
    """What spaces know of one stage of a method; `structure` is of the stage's units, or of its
    weight tensors.
    """
    macs = Cost(structure).macs
    return Terrain(
        structure=structure,
        macs=macs,
        dense_macs=macs(structure.sizes),
        rule=method.rule,
        scores=scores,
        sensitivity=sensitivity,
        pools=None if method.scope == "local" else pools_of(structure, method, model),
        round_to=method.round_to,
        method=method.name,
        then=then,
        weight=None if method.removes_units else weight_of(method),
    )


def within_study(terrain: Terrain, settings: Settings) -> Terrain:
    """With what the study asks of every plan: the largest FLOPs ratio, and how many blocks the
    chain drops.
    """
    then = None if terrain.then is None else within_study(terrain.then, settings)
    return replace(
        terrain,
        max_flops_ratio=settings.objectives.largest_ratio or 1.0,
        depth=settings.search.chain.depth,
        then=then,
    )


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
    """Groups whose units are compared with one another under the method's scope; blocks are
    compared with none.
    """
    apart = {i for i, group in enumerate(structure.groups) if group.kind in ("block", "pattern")}
    alone = [[i] for i in sorted(apart)]
    if method.scope == "local":
        return [[i] for i in range(len(structure.groups))]
    if method.scope == "global":
        ranked = [i for i in range(len(structure.groups)) if i not in apart]
        return ([ranked] if ranked else []) + alone
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    pools: dict[object, list[int]] = {}
    for place, same in enumerate(isomorphic_classes(structure)):
        for i in same:
            if (
                i not in apart
            ):  # tensors of single weights are of one size in a class, and here of one shape too
                pools.setdefault((place, shapes.get(structure.groups[i].name)), []).append(i)
    return [*pools.values(), *alone]
