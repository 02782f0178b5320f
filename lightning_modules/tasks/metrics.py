"""What a task's class says of its metrics. It is read before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe, locate

Direction = Literal["maximize", "minimize"]
"""Which way a metric is better."""


def directions_of(recipe: Recipe) -> dict[str, Direction]:
    """The metrics of a task, and which way each is better.

    Errors: ConfigError for a task that does not say.
    """
    directions = getattr(locate(recipe.target), "directions", None)
    known = isinstance(directions, Mapping) and directions
    if not known or set(directions.values()) - {"maximize", "minimize"}:
        raise ConfigError(
            "a task must say which metrics its validation logs and which way each is better, as in "
            f"directions = {{'accuracy': 'maximize', 'loss': 'minimize'}}; {recipe.target} has "
            f"{directions!r}"
        )
    return dict(directions)


def scale_of(recipe: Recipe, metric: str, dense: float) -> float:
    """What counts as one unit of a metric; tolerances and guards are multiples of it.

    `dense` is the dense model's value of the metric.
    """
    scales = getattr(locate(recipe.target), "scale", {})
    default = abs(dense) or 1.0
    return float(scales.get(metric, default))


def reference_of(recipe: Recipe, metric: str) -> float | None:
    """The value of a metric from which the hypervolume counts. None if the task does not say."""
    references = getattr(locate(recipe.target), "references", {})
    value = references.get(metric)
    return None if value is None else float(value)
