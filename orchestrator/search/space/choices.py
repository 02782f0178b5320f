"""Choices beside the thresholds: the method, the level of activation pruning, quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from lightning_modules.pruning.plan import Plan
from orchestrator.search.space.contract import Params, SearchContext, Space
from orchestrator.search.space.levels import discretised, snapped
from orchestrator.settings import MethodSettings

METHOD = "method"
ACTIVATION = "activation.level"
INT8 = "int8"


@dataclass(frozen=True)
class Choices:
    """A space and, around it, the choices that `method` leaves open.

    `contexts` are by the names of the methods.
    """

    space: Space
    method: MethodSettings
    contexts: Mapping[str, SearchContext]

    @property
    def needs_profile(self) -> bool:
        return self.space.needs_profile

    @property
    def levels(self) -> int | None:
        return self.space.levels

    def distributions(self, context: SearchContext) -> dict[str, BaseDistribution]:
        dimensions = self.space.distributions(context)
        if len(self.contexts) > 1:
            dimensions[METHOD] = CategoricalDistribution(tuple(self.contexts))
        activation = self.method.activation
        if activation is not None:
            low, high = activation.levels
            dimensions[ACTIVATION] = FloatDistribution(low, high)
        if len(self.method.int8) > 1:
            dimensions[INT8] = CategoricalDistribution(tuple(self.method.int8))
        return discretised(dimensions, self.levels)

    def chain(self, context: SearchContext, ratio: float) -> Params:
        """The space's parameters by the context's method, without quantisation.

        Activations are pruned as gently as possible.
        """
        params = self.space.chain(context, ratio)
        if len(self.contexts) > 1:
            params[METHOD] = context.method
        activation = self.method.activation
        if activation is not None:
            low, high = activation.levels
            params[ACTIVATION] = high if activation.kind == "topk" else low
        if len(self.method.int8) > 1:
            params[INT8] = self.method.int8[0]
        if self.levels is None:
            return params
        return snapped(params, self.distributions(context))

    def unpruned(self, context: SearchContext, params: Params) -> Plan:
        plan = self.space.unpruned(self._context(params), params)
        return self._completed(plan, params)

    def propose(self, context: SearchContext, params: Params) -> Plan:
        plan = self.space.propose(self._context(params), params)
        return self._completed(plan, params)

    def _context(self, params: Params) -> SearchContext:
        """The context of the method that the parameters name, or of the only method."""
        only = next(iter(self.contexts))
        return self.contexts[params.get(METHOD, only)]

    def _completed(self, plan: Plan, params: Params) -> Plan:
        """The plan with what the space does not know of."""
        quantised = params.get(INT8, self.method.int8[0])
        export = INT8 if quantised else None
        return replace(plan, activation=params.get(ACTIVATION), export=export)
