"""What a task says of its metrics: known without torch, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe, locate

Direction = Literal["maximize", "minimize"]


def directions_of(recipe: Recipe) -> dict[str, Direction]:
    """The metrics of a task and which way each is better. Errors: ConfigError for a task that does not say."""
    directions = getattr(locate(recipe.target), "directions", None)
    known = isinstance(directions, Mapping) and directions
    if not known or set(directions.values()) - {"maximize", "minimize"}:
        raise ConfigError(
            f"a task must say which metrics its validation logs and which way each is better, as in "
            f"directions = {{'accuracy': 'maximize', 'loss': 'minimize'}}; {recipe.target} has {directions!r}"
        )
    return dict(directions)


def scale_of(recipe: Recipe, metric: str, dense: float) -> float:
    """One unit of a metric, of which tolerances and guards are multiples; `dense` is the dense model's value."""
    known = getattr(locate(recipe.target), "scale", {})
    return float(known.get(metric, abs(dense) or 1.0))


def reference_of(recipe: Recipe, metric: str) -> float | None:
    """The value of a metric from which the hypervolume counts; None where the task does not say."""
    value = getattr(locate(recipe.target), "references", {}).get(metric)
    return None if value is None else float(value)
