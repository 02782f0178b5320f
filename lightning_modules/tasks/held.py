"""Which way the metrics of a user's module are better, as far as the module itself tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytorch_lightning import LightningModule
from torchmetrics import Metric, MetricCollection

from lightning_modules.tasks.metrics import Direction, without_stage


def held_directions(module: LightningModule) -> dict[str, Direction]:
    """The direction of each torchmetrics metric that the module holds.

    Names are those of attributes and of the members of collections, without a stage in front.
    """
    return agreed(_held(module))


def logged_directions(logged: Mapping[str, Any]) -> dict[str, Direction]:
    """The direction of each metric object that was logged, by the name it was logged under."""
    return agreed([(name, value) for name, value in logged.items() if isinstance(value, Metric)])


def agreed(metrics: Iterable[tuple[str, Metric]]) -> dict[str, Direction]:
    """Directions by name without a stage; none where two metrics of a name differ."""
    ways: dict[str, set[bool | None]] = {}
    for name, metric in metrics:
        ways.setdefault(without_stage(name), set()).add(metric.higher_is_better)
    directions: dict[str, Direction] = {}
    for name, found in ways.items():
        if found == {True}:
            directions[name] = "maximize"
        elif found == {False}:
            directions[name] = "minimize"
    return directions


def _held(module: LightningModule) -> Iterator[tuple[str, Metric]]:
    for path, part in module.named_modules():
        if isinstance(part, MetricCollection):
            yield from part.items()
        elif isinstance(part, Metric):
            yield path.rpartition(".")[2], part
