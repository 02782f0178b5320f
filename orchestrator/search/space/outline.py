"""The dimensions of a search before anything is trained: what they depend on costs nothing."""

from __future__ import annotations

import numpy as np
from optuna.distributions import BaseDistribution
from torch import nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.weights import Weight, weight_structure
from orchestrator.search.space import Choices, Terrain
from orchestrator.search.trials.pruners import pools_of
from orchestrator.settings import MethodSettings, Settings


def outline(
    settings: Settings, structure: Structure, model: nn.Module
) -> dict[str, BaseDistribution]:
    """What the sampler is asked for, by name."""
    terrains = {
        way.name: _terrain(settings, structure, model, way) for way in settings.method.choices()
    }
    choices = Choices(settings.space.build(), settings.method, terrains)
    return choices.distributions(next(iter(terrains.values())))


def _terrain(
    settings: Settings, structure: Structure, model: nn.Module, method: MethodSettings
) -> Terrain:
    """What the space's dimensions depend on; scores and sensitivity, which cost something, are not among it."""
    then = None if method.then is None else _terrain(settings, structure, model, method.then)
    structure = on_weights(structure, model, method) or structure
    macs = Cost(structure).macs
    pools = None if method.scope == "local" else pools_of(structure, method, model)
    return Terrain(
        structure,
        macs,
        macs(structure.sizes),
        method.rule,
        np.ones(structure.n_units),
        max_flops_ratio=settings.objectives.largest_ratio or 1.0,
        pools=pools,
        then=then,
        method=method.name,
        depth=settings.search.chain.depth,
    )


def on_weights(structure: Structure, model: nn.Module, method: MethodSettings) -> Structure | None:
    """The weight tensors of a method that prunes single weights; None where it prunes units."""
    if method.granularity == "unit":
        return None
    return weight_structure(
        structure, structure.full(), model, Weight(method.granularity, method.shape or (1, 1))
    )
