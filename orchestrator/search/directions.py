"""Which way each metric of a task is better."""

from __future__ import annotations

import functools
import json
from typing import Any

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe
from lightning_modules.tasks.metrics import (
    WHOLE,
    Direction,
    called_loss,
    directions_of,
    is_lightning,
    without_stage,
)
from orchestrator.settings import Settings


def task_directions(settings: Settings) -> dict[str, Direction]:
    """The metrics of the task and which way each is better.

    Of a user's own module these are the metrics that the study is after: as the settings say, as
    torchmetrics says of a metric of that name, or of the one that is logged under it.
    Errors: ConfigError for a metric whose direction is not known, or that the settings say
    otherwise than the task.
    """
    objectives = settings.objectives
    names = [objectives.quality, *objectives.metrics]
    if not is_lightning(settings.task):
        directions = directions_of(settings.task)
        _check_agreed(directions, objectives.directions)
        return directions
    directions = {**objectives.directions}
    for name in names:
        if name not in directions:
            directions[name] = _told(settings, name)
    return directions


def _check_agreed(own: dict[str, Direction], told: dict[str, Direction]) -> None:
    for name, direction in told.items():
        if own.get(name, direction) != direction:
            raise ConfigError(
                f"objectives.direction must be as the task says: {own[name]} for '{name}'; got "
                f"{direction}; leave it out"
            )


def _told(settings: Settings, name: str) -> Direction:
    """Errors: ConfigError where nothing tells."""
    if settings.model.target != WHOLE:
        raise ConfigError(
            "task=lightning prunes a network inside of task.module: take model=inside; got "
            f"{settings.model.target}"
        )
    model = json.dumps(settings.model.to_json())
    short = without_stage(name)
    direction = _held(model).get(short) or called_loss(name)
    if direction is None:
        direction = _logged(model, json.dumps(settings.data.to_json())).get(short)
    if direction is None:
        raise ConfigError(
            f"no torchmetrics metric of the module is called '{name}', so that it must be said "
            "which way it is better: objectives.direction=maximize or minimize (of several "
            f"metrics: objectives.direction={{{name}: maximize}})"
        )
    return direction


@functools.lru_cache(maxsize=4)
def _held(model: str) -> dict[str, Direction]:
    """Directions of the metrics that the module of this recipe holds."""
    # imported here, as the tasks of this project need no torchmetrics to say their directions
    from lightning_modules.tasks.held import held_directions

    return held_directions(_built(model).module)


@functools.lru_cache(maxsize=4)
def _logged(model: str, data: str) -> dict[str, Direction]:
    """Directions of the metric objects that the validation of a batch logs."""
    from lightning_modules.data.contract import ready_data
    from lightning_modules.tasks.contract import validated
    from lightning_modules.tasks.held import logged_directions

    batches = ready_data(Recipe.from_json(json.loads(data))).val_dataloader()
    task = _built(model).eval().module
    return logged_directions(validated(task, next(iter(batches))))


def _built(model: str) -> Any:
    return Recipe.from_json(json.loads(model)).build()
