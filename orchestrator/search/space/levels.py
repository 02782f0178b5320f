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
    """Each float with `levels` values, both ends among them, evenly spaced or, on a log axis, in
    equal ratios.

    Optuna has no steps in equal ratios: those values become choices.
    """
    if levels is None:
        return distributions
    return {
        name: _cut(found, levels)
        if isinstance(found, FloatDistribution) and found.step is None
        else found
        for name, found in distributions.items()
    }


def _cut(found: FloatDistribution, levels: int) -> BaseDistribution:
    if found.low == found.high:
        return CategoricalDistribution((found.low,))
    if found.log:
        return CategoricalDistribution(
            tuple(float(f"{x:.6g}") for x in np.geomspace(found.low, found.high, levels))
        )
    low, high = Decimal(str(found.low)), Decimal(str(found.high))
    step = Decimal(f"{(high - low) / (levels - 1):.6g}")
    if low + (levels - 1) * step > high:  # rounded up
        step -= Decimal(1).scaleb(step.as_tuple().exponent)  # type: ignore[arg-type]
    return FloatDistribution(float(low), float(low + (levels - 1) * step), step=float(step))


def snapped(params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Values off the levels moved to the nearest one; on a log axis by ratio."""
    return {name: _nearest(value, distributions[name]) for name, value in params.items()}


def _nearest(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(value, float):
        return value
    if isinstance(distribution, CategoricalDistribution):
        return min(
            distribution.choices,
            key=lambda choice: abs(np.log(float(choice or 1e-12) / max(value, 1e-12))),
        )
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        turns = round((value - distribution.low) / distribution.step)
        return min(distribution.low + turns * distribution.step, distribution.high)
    return value
