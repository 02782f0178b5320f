"""What tracking shows of a model: the same few columns for each, as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.costs import ratio_name
from orchestrator.results.quantities import axis_words
from orchestrator.settings import Settings

_UNITS = ("latency_ms", "estimated_latency_ms", "size_mb")
"""Costs that are shown as they are: a person has a feeling for them."""
_PLAIN = {"effective_flops": "flops", "nonzero_params": "params"}
"""Counts of what is not zero, and those of all."""
_ALIKE = 0.01
"""Ratios that differ by less say the same."""


def study_columns(settings: Settings) -> dict[str, str]:
    """Tags of the study and of each of its runs: MLflow's table does not inherit them."""
    criteria = []
    for method in settings.method.choices():
        criteria.append(method.scoring().target.rpartition(".")[2])
    return {
        "model": settings.model_name(),
        "data": settings.data.target.rpartition(".")[2],
        "method": settings.method.name,
        "criterion": ", ".join(criteria),
        "seed": str(settings.seed),
    }


def size_words(ratio: float, axis: str) -> str:
    """A share of the dense model's cost: '26% of FLOPs', '5.7% of FLOPs'."""
    digits = 0 if ratio >= 0.0995 else 1
    return f"{100 * ratio:.{digits}f}% of {axis_words(axis)}"


def shown_costs(costs: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, float]:
    """The costs that a person compares: ratios of counts, and what has a unit.

    A count of what is not zero stands beside its plain one only where they differ. A weight may be
    zero by chance.
    """
    shown = {}
    for name, ratio in ratios.items():
        same = abs(ratio - ratios.get(_PLAIN.get(name, ""), -1.0)) < _ALIKE
        if name not in _UNITS and not same:
            shown[ratio_name(name)] = ratio
    for name in _UNITS:
        if name in costs:
            shown[name] = float(costs[name])
    return shown


def five_digits(value: float) -> float:
    """Five digits, as pages show every one; the files of the study have them all."""
    return float(f"{value:.5g}")
