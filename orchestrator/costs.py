"""The costs that a plan can have: one row each.

How a cost is worked out stands in `search/costs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CostName:
    """The names of a cost.

    `key` names it in the configuration and in tables, `words` where people read it; `unit` may be
    empty.
    """

    key: str
    words: str
    unit: str = ""


_ROWS = (
    CostName("flops", "FLOPs", "FLOPs"),
    CostName("effective_flops", "effective FLOPs", "FLOPs"),
    CostName("params", "params"),
    CostName("nonzero_params", "nonzero params"),
    CostName("size_mb", "size", "MB"),
    CostName("latency_ms", "latency", "ms"),
    CostName("estimated_latency_ms", "estimated latency", "ms"),
)
COSTS: dict[str, CostName] = {row.key: row for row in _ROWS}
AXES = ("flops", "effective_flops")
"""Costs along which targets and baselines may stand.

Their ratios to the dense model's are known of every plan.
"""
_RATIO = "_ratio"


def ratio_name(cost: str) -> str:
    """The name of a cost against the dense model's: `flops` -> `flops_ratio`."""
    return f"{cost}{_RATIO}"


def known_names() -> list[str]:
    """All costs and their ratios: the values that may be bounded."""
    return [*COSTS, *map(ratio_name, COSTS)]


def ratios_of(costs: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """Each cost against the dense model's, by the cost's own name.

    Costs of which the dense model's is not known, or not above zero, are left out.
    """
    ratios = {}
    for name, value in costs.items():
        if dense.get(name):
            ratios[name] = value / dense[name]
    return ratios


def with_ratios(costs: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, float]:
    """Costs by their names and ratios by theirs, in one mapping."""
    values = dict(costs)
    for name, ratio in ratios.items():
        values[ratio_name(name)] = ratio
    return values
