"""What is known of the dense network before the search begins.

Nothing here does work, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from torch import nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Counts, Structure, some_of
from lightning_modules.pruning.weights import effective_macs, macs_by_tensor
from orchestrator.search.costs import Prices
from orchestrator.search.goals import Goals
from orchestrator.search.plans.lineage import weights_digest
from orchestrator.search.space.allocation import TargetCost
from orchestrator.settings.targets import FLOPS_TARGET, LATENCY_TARGET


@dataclass(frozen=True)
class Facts:
    """The dense `model`, and what follows from it.

    `prices` is what costs follow from. `goals` are what the study is after. `dense_metrics` are the
    dense model's validation metrics and `dense_costs` its costs by name. `scale` is one small
    difference of the quality metric, of which tolerances are multiples. `rewound` is the model in
    an early state of its training, where one was kept. `latency_targets` says whether targets are
    ratios of the estimated latency instead of FLOPs.
    """

    model: nn.Module
    prices: Prices
    goals: Goals
    dense_metrics: Mapping[str, float]
    scale: float
    dense_costs: Mapping[str, float] = field(default_factory=dict)
    rewound: nn.Module | None = None
    latency_targets: bool = False

    @property
    def structure(self) -> Structure:
        return self.prices.structure

    @property
    def cost(self) -> Cost:
        return self.prices.closed_form

    @cached_property
    def target(self) -> TargetCost:
        """What targets are ratios of, and what the units of a ranking save."""
        latency = self.prices.latency
        if latency is None or not self.latency_targets:
            return TargetCost(FLOPS_TARGET, self.cost.macs, self.cost.macs_batch)
        return TargetCost(LATENCY_TARGET, latency.nanoseconds, latency.layers.nanoseconds)

    @property
    def example(self) -> Inputs:
        """The inputs of the network for one sample."""
        return self.prices.example

    @property
    def axis(self) -> str:
        """The cost along which targets, bands and baselines stand."""
        return self.goals.axis

    @property
    def dense_quality(self) -> float:
        return self.dense_metrics[self.goals.quality]

    @property
    def all_dense_costs(self) -> dict[str, float]:
        """The dense model's costs with its latency, measured when it is first asked for."""
        return {**self.dense_costs, "latency_ms": self.prices.bench.dense_ms}

    @cached_property
    def dense_digest(self) -> str:
        """The sha256 of the dense weights: the key of everything measured on them and kept."""
        return weights_digest(self.model)

    @property
    def dense_macs(self) -> int:
        return self.cost.macs(self.structure.sizes)

    @property
    def dense_params(self) -> int:
        return self.cost.params(self.structure.sizes)

    @property
    def weight_names(self) -> list[str]:
        """Parameters that MACs go through: those of which single weights may be pruned."""
        return list(macs_by_tensor(self.structure, self.structure.full()))

    def ratios(
        self, kept: Counts, density: Mapping[str, float] = MappingProxyType({})
    ) -> dict[str, float]:
        """`flops`, `params` and `effective_flops` of a plan against the dense model's.

        `density` is by weight tensor.
        """
        keep = some_of(self.structure, kept)
        effective = effective_macs(self.structure, keep, density)
        return {
            "flops": self.cost.macs(kept) / self.dense_macs,
            "params": self.cost.params(kept) / self.dense_params,
            "effective_flops": effective / self.dense_macs,
        }
