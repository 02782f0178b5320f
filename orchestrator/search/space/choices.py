"""What is chosen beside the thresholds: the method, the level of activation pruning,
quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from lightning_modules.pruning.plan import Plan
from orchestrator.search.space.contract import Params, Space, Terrain
from orchestrator.search.space.levels import discretised, snapped
from orchestrator.settings import MethodSettings

METHOD, ACTIVATION, INT8 = "method", "activation.level", "int8"


@dataclass(frozen=True)
class Choices:
    """A space and, around it, the choices that `method` leaves open; `terrains` are by the names of
    its choices.
    """

    space: Space
    method: MethodSettings
    terrains: Mapping[str, Terrain]

    @property
    def needs_profile(self) -> bool:
        return self.space.needs_profile

    @property
    def levels(self) -> int | None:
        return self.space.levels

    def distributions(self, terrain: Terrain) -> dict[str, BaseDistribution]:
        found = self.space.distributions(terrain)
        if len(self.terrains) > 1:
            found[METHOD] = CategoricalDistribution(tuple(self.terrains))
        if self.method.activation is not None:
            found[ACTIVATION] = FloatDistribution(*self.method.activation.levels)
        if len(self.method.int8) > 1:
            found[INT8] = CategoricalDistribution(tuple(self.method.int8))
        return discretised(found, self.levels)

    def chain(self, terrain: Terrain, flops_ratio: float) -> Params:
        """As the space has it, by the terrain's method, with the gentlest activation pruning and
        unquantised.
        """
        found = self.space.chain(terrain, flops_ratio)
        if len(self.terrains) > 1:
            found[METHOD] = terrain.method
        if (activation := self.method.activation) is not None:
            low, high = activation.levels
            found[ACTIVATION] = high if activation.kind == "topk" else low
        if len(self.method.int8) > 1:
            found[INT8] = self.method.int8[0]
        return found if self.levels is None else snapped(found, self.distributions(terrain))

    def unpruned(self, terrain: Terrain, params: Params) -> Plan:
        return self._completed(self.space.unpruned(self._terrain(params), params), params)

    def propose(self, terrain: Terrain, params: Params) -> Plan:
        return self._completed(self.space.propose(self._terrain(params), params), params)

    def _terrain(self, params: Params) -> Terrain:
        """That of the method which the parameters name, of the only one where there is no
        choice.
        """
        return self.terrains[params.get(METHOD, next(iter(self.terrains)))]

    def _completed(self, plan: Plan, params: Params) -> Plan:
        return replace(
            plan,
            activation=params.get(ACTIVATION),
            export=INT8 if params.get(INT8, self.method.int8[0]) else None,
        )
