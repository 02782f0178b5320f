"""What a task's class says of its metrics. It is read before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe, locate

Direction = Literal["maximize", "minimize"]
"""Which way a metric is better."""
LIGHTNING = "lightning_modules.tasks.lightning"
"""The target of task=lightning."""
WHOLE = "lightning_modules.tasks.Whole"
"""The target of model=inside."""
_STAGE = re.compile(r"^(?:val|valid|validation|test|train)[_/.:-]+", re.IGNORECASE)


def is_lightning(recipe: Recipe) -> bool:
    """Whether a task is a LightningModule as its user wrote it."""
    return recipe.target == LIGHTNING


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


def called_loss(name: str) -> Direction | None:
    """Something that is called a loss is to be small."""
    return "minimize" if "loss" in name.lower() else None


def under_names_of(known: Iterable[str], logged: Mapping[str, float]) -> dict[str, float]:
    """Metrics logged on test data, under their names on validation data.

    A name stands for the known one that is equal to it, or that is equal without the stage in
    front: `test_f1` and `f1` stand for `val_f1`.
    """
    names = {without_stage(name): name for name in known}
    metrics = {}
    for name, value in logged.items():
        metrics[names.get(without_stage(name), name)] = value
    return metrics


def without_stage(name: str) -> str:
    """A metric's name without `val`, `valid`, `validation`, `test` or `train` in front."""
    return _STAGE.sub("", name)


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
