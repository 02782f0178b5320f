"""The costs that a plan can have: one row each. How a cost is worked out stands in
`search/costs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CostName:
    """`key` names the cost in the configuration and in tables, `words` where people read it; `unit`
    may be empty.
    """

    key: str
    words: str
    unit: str = ""


COSTS: dict[str, CostName] = {
    name.key: name
    for name in (
        CostName("flops", "FLOPs", "FLOPs"),
        CostName("effective_flops", "effective FLOPs", "FLOPs"),
        CostName("params", "params"),
        CostName("nonzero_params", "nonzero params"),
        CostName("size_mb", "size", "MB"),
        CostName("latency_ms", "latency", "ms"),
        CostName("estimated_latency_ms", "estimated latency", "ms"),
    )
}
AXES = ("flops", "effective_flops")
"""Costs whose ratios to the dense model's are known of every plan, and along which targets and
baselines stand.
"""
_RATIO = "_ratio"


def ratio_name(cost: str) -> str:
    """The name of a cost against the dense model's: `flops` -> `flops_ratio`."""
    return f"{cost}{_RATIO}"


def known_names() -> list[str]:
    """All costs and their ratios: what may be bounded."""
    return [*COSTS, *map(ratio_name, COSTS)]


def cost_of(name: str) -> str:
    """The cost behind a name of a cost or of its ratio."""
    return name.removesuffix(_RATIO)


def ratios_of(costs: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """Each cost against the dense model's, where that one is known and above zero; by the cost's
    own name.
    """
    return {name: value / dense[name] for name, value in costs.items() if dense.get(name)}


def with_ratios(costs: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, float]:
    """Costs by their names and ratios by theirs, in one mapping."""
    return {**costs, **{ratio_name(name): value for name, value in ratios.items()}}
