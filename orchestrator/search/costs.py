"""Costs of a plan or a model: one function for each row of the table in `orchestrator/costs.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Counts, Structure, some_of
from lightning_modules.pruning.weights import effective_macs
from lightning_modules.tasks.whole import pruned_part
from orchestrator.latency.bench import Bench
from orchestrator.search.lab.latency_model import LatencyModel

MEGA = 1e6
"""Bytes in a megabyte."""


@dataclass(frozen=True)
class Prices:
    """What costs follow from: the structure, its closed forms and one input.

    `bench` measures latencies; `latency` is the latency model, where there is one.
    """

    structure: Structure
    closed_form: Cost
    example: Inputs
    bench: Bench
    latency: LatencyModel | None = None


@dataclass(frozen=True)
class Costed:
    """A plan or model whose costs are asked for; a cost that needs a value that is None is unknown.

    `kept` has shape (n_groups,). `density` is the share of nonzero factors by weight tensor, None
    where it is not known before training. `shaped` is a model of the right shapes, whatever its
    weights, or what runs it; `trained` has the weights whose zeros count. `artifact` is the
    exported file that stands in for the tensors.
    """

    kept: Counts
    density: Mapping[str, float] | None = field(default_factory=dict)
    shaped: Any | None = None
    trained: nn.Module | None = None
    artifact: Path | None = None


def _flops(prices: Prices, costed: Costed) -> float:
    return 2.0 * prices.closed_form.macs(costed.kept)


def _effective_flops(prices: Prices, costed: Costed) -> float | None:
    if costed.density is None:
        return None
    keep = some_of(prices.structure, costed.kept)
    return 2.0 * round(effective_macs(prices.structure, keep, costed.density))


def _params(prices: Prices, costed: Costed) -> float:
    return float(prices.closed_form.params(costed.kept))


def _nonzero_params(prices: Prices, costed: Costed) -> float | None:
    if costed.trained is None:
        return None
    count = 0
    for parameter in pruned_part(costed.trained).parameters():
        count += int((parameter != 0).sum())
    return float(count)


def _size_mb(prices: Prices, costed: Costed) -> float | None:
    if costed.artifact is not None:
        return costed.artifact.stat().st_size / MEGA
    model = costed.shaped if costed.trained is None else costed.trained
    if model is None:
        return None
    size = 0.0
    for tensor in pruned_part(model).state_dict().values():
        size += float(tensor.numel() * tensor.element_size())
    return size / MEGA


def _latency_ms(prices: Prices, costed: Costed) -> float | None:
    return None if costed.shaped is None else prices.bench(costed.shaped).median


def _estimated_latency_ms(prices: Prices, costed: Costed) -> float | None:
    return None if prices.latency is None else prices.latency(costed.kept)


FORMULAS: dict[str, Callable[[Prices, Costed], float | None]] = {
    "flops": _flops,
    "effective_flops": _effective_flops,
    "params": _params,
    "nonzero_params": _nonzero_params,
    "size_mb": _size_mb,
    "latency_ms": _latency_ms,
    "estimated_latency_ms": _estimated_latency_ms,
}
SHAPE_COSTS = ("size_mb", "latency_ms")
"""Costs of a model in floating point that follow from its shapes: an untrained one has them."""
MEASURED_COSTS = ("latency_ms",)
"""Costs that take time to measure: asked for only where they count."""


def costs_of(
    prices: Prices, costed: Costed, names: Iterable[str] = tuple(FORMULAS)
) -> dict[str, float]:
    """The costs of these names that are known, in the order of the table."""
    wanted = set(names)
    costs = {}
    for name, formula in FORMULAS.items():
        value = formula(prices, costed) if name in wanted else None
        if value is not None:
            costs[name] = value
    return costs
