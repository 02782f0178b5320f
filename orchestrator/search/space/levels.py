"""Continuous dimensions cut into levels, for samplers that try everything."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from lightning_modules.errors import ConfigError


def check_levels(levels: int | None) -> None:
    """Errors: ConfigError for fewer than two."""
    if levels is not None and levels < 2:
        raise ConfigError(f"space.levels must be null (continuous) or at least 2; got {levels}")


def discretised(
    distributions: dict[str, BaseDistribution], levels: int | None
) -> dict[str, BaseDistribution]:
    """Each float with `levels` values, both ends among them.

    Values are evenly spaced or, on a log axis, in equal ratios. Optuna has no steps in equal
    ratios: those values become choices.
    """
    if levels is None:
        return distributions
    cut: dict[str, BaseDistribution] = {}
    for name, distribution in distributions.items():
        if isinstance(distribution, FloatDistribution) and distribution.step is None:
            cut[name] = _cut(distribution, levels)
        else:
            cut[name] = distribution
    return cut


def _cut(distribution: FloatDistribution, levels: int) -> BaseDistribution:
    if distribution.low == distribution.high:
        return CategoricalDistribution((distribution.low,))
    if distribution.log:
        values = np.geomspace(distribution.low, distribution.high, levels)
        return CategoricalDistribution(tuple([float(f"{value:.6g}") for value in values]))
    low = Decimal(str(distribution.low))
    high = Decimal(str(distribution.high))
    step = Decimal(f"{(high - low) / (levels - 1):.6g}")
    if low + (levels - 1) * step > high:
        # the step was rounded up, and the last value would lie outside
        step -= Decimal(1).scaleb(step.as_tuple().exponent)  # type: ignore[arg-type]
    last = low + (levels - 1) * step
    return FloatDistribution(float(low), float(last), step=float(step))


def snapped(params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Values off the levels moved to the nearest one; on a log axis by ratio."""
    return {name: _nearest(value, distributions[name]) for name, value in params.items()}


def _nearest(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(value, float):
        return value
    if isinstance(distribution, CategoricalDistribution):

        def distance(choice: Any) -> float:
            ratio = float(choice or 1e-12) / max(value, 1e-12)
            return float(abs(np.log(ratio)))

        return min(distribution.choices, key=distance)
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        return min(distribution.low + steps * distribution.step, distribution.high)
    return value
