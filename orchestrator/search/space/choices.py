"""What is chosen beside the thresholds: the method, the level of activation pruning, quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from orchestrator.search.measurement import Proposal
from orchestrator.search.space.contract import Params, Space, Terrain
from orchestrator.settings import MethodSettings

METHOD, ACTIVATION, INT8 = "method", "activation.level", "int8"


@dataclass(frozen=True)
class Choices:
    """A space and, around it, the choices a method leaves open; `terrains` and `methods` are by the methods' names."""

    space: Space
    methods: Mapping[str, MethodSettings]
    terrains: Mapping[str, Terrain]

    @property
    def needs_profile(self) -> bool:
        return self.space.needs_profile

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        found = self.space.distributions(terrain)
        if len(self.methods) > 1:
            found[METHOD] = CategoricalDistribution(tuple(self.methods))
        first = next(iter(self.methods.values()))
        if first.activation is not None:
            found[ACTIVATION] = FloatDistribution(*first.activation.levels)
        if len(first.int8) > 1:
            found[INT8] = CategoricalDistribution(tuple(first.int8))
        return found

    def chain(self, terrain: Terrain, flops_ratio: float, equal_loss: float) -> Params:
        """As the space has it, by the terrain's method, with the gentlest activation pruning and unquantised."""
        found = self.space.chain(terrain, flops_ratio, equal_loss)
        first = next(iter(self.methods.values()))
        if len(self.methods) > 1:
            found[METHOD] = terrain.method
        if first.activation is not None:
            low, high = first.activation.levels
            found[ACTIVATION] = high if first.activation.kind == "topk" else low
        if len(first.int8) > 1:
            found[INT8] = first.int8[0]
        return found

    def propose(self, terrain: Terrain, params: Params) -> Proposal:
        first = next(iter(self.methods.values()))
        name = params.get(METHOD, first.name)
        return replace(
            self.space.propose(self.terrains[name], params),
            method=name,
            activation=params.get(ACTIVATION),
            int8=params.get(INT8, first.int8[0]),
        )
