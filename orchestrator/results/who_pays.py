"""Who pays for a smaller model: its test results beside the dense model's, class by class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLASS = "class"
METRIC = "metric"
ByName = Mapping[str, float]


@dataclass(frozen=True)
class SeedResults:
    """Test results of one confirmed model, an entry for each seed.

    `by_class` has the quality of each class, more is better; empty for tasks that do not tell.
    """

    metrics: Sequence[ByName] = ()
    by_class: Sequence[ByName] = ()


@dataclass(frozen=True)
class Change:
    """The change of one class or metric against the dense model: means over the seeds.

    `spread` is the standard deviation of the difference, from those of both models.
    """

    name: str
    dense: float
    change: float
    spread: float

    def words(self, what: str) -> str:
        """The change of a class in units of its quality, of a metric in percent."""
        factor, digits, unit = (1.0, 4, "") if what == CLASS else (100.0, 1, " %")
        change = round(factor * self.change, digits) + 0.0  # no -0.0
        return f"{change:+.{digits}f} ± {factor * self.spread:.{digits}f}{unit}"


def changes_of(
    models: Mapping[str, SeedResults], dense: SeedResults, signs: Mapping[str, float]
) -> tuple[str, dict[str, list[Change]]]:
    """What the changes are of, and those of each model that has some, by its name.

    They are of classes where every model tells them, else of metrics, whose `signs` are 1 where a
    large value is good and else -1.
    """
    classes = {name: class_changes(model, dense) for name, model in models.items()}
    if classes and all(classes.values()):
        return CLASS, classes
    metrics = {name: metric_changes(model, dense, signs) for name, model in models.items()}
    return METRIC, {name: changes for name, changes in metrics.items() if changes}


def class_changes(model: SeedResults, dense: SeedResults) -> list[Change]:
    """The change of each class, the greatest loss first; empty where either does not tell."""
    return sorted(_changes(model.by_class, dense.by_class), key=lambda change: change.change)


def metric_changes(
    model: SeedResults, dense: SeedResults, signs: Mapping[str, float]
) -> list[Change]:
    """The change of each metric as a share of the dense model's value, the greatest loss first.

    `signs` are 1 where a large value is good, else -1, so that a gain is above zero. Metrics
    without one, and those of which the dense model has 0, are left out.
    """
    shares = []
    for change in _changes(model.metrics, dense.metrics):
        size = abs(change.dense)
        if change.name in signs and size > 0.0:
            gain = signs[change.name] * change.change / size
            shares.append(Change(change.name, change.dense, gain, change.spread / size))
    return sorted(shares, key=lambda change: change.change)


def _changes(model: Sequence[ByName], dense: Sequence[ByName]) -> list[Change]:
    if not model or not dense:
        return []
    changes = []
    for name in dense[0]:
        ours = _known(model, name)
        theirs = _known(dense, name)
        if ours and theirs:
            spread = math.hypot(_spread(ours), _spread(theirs))
            before = statistics.fmean(theirs)
            changes.append(Change(name, before, statistics.fmean(ours) - before, spread))
    return changes


def _known(seeds: Sequence[ByName], name: str) -> list[float]:
    """The values of all seeds; empty where one of them has none, or no number."""
    values = [seed.get(name, math.nan) for seed in seeds]
    return values if all(math.isfinite(value) for value in values) else []


def _spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
