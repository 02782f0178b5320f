"""What a study is after, as numbers: points to compare, bounds to keep, a volume to grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import nearest
from lightning_modules.tasks.metrics import Direction, directions_of, scale_of
from lightning_modules.tasks.metrics import reference_of as task_reference
from orchestrator.costs import AXES, COSTS, known_names, ratio_name
from orchestrator.results.rows import TrialRow
from orchestrator.search.front import Points, hypervolume, volume
from orchestrator.settings import Settings
from orchestrator.settings.objectives import Bound

WORSE = 0.5
"""Units of the quality below the dense model's: from there the hypervolume counts, where nothing
says otherwise.
"""
LEAST_RATIO = 1 / 32
"""Of the dense FLOPs: the area along their log axis is clipped here, where no bound says otherwise.
"""


@dataclass(frozen=True)
class Goals:
    """`signs` are 1 where more of a metric is better and -1 where less is: quality first, then the
    further metrics.
    """

    quality: str
    signs: Mapping[str, float]
    costs: tuple[str, ...]
    bounds: Mapping[str, Bound] = field(default_factory=dict)

    @property
    def sign(self) -> float:
        return self.signs[self.quality]

    @property
    def axis(self) -> str:
        """The cost along which targets, bands and baselines stand: its ratio is known before any
        training.
        """
        return "effective_flops" if "effective_flops" in self.costs else "flops"

    def uses(self, cost: str) -> bool:
        """Whether a cost is optimised or bounded."""
        return cost in self.costs or self.bounded(cost)

    def bounded(self, cost: str) -> bool:
        """Whether a cost, or its ratio to the dense model's, has a bound."""
        return cost in self.bounds or ratio_name(cost) in self.bounds

    def loss(self, metrics: Mapping[str, float]) -> float:
        """Smaller is better: the loss where the task logs one, which tells more models apart, else
        the quality.
        """
        return metrics["loss"] if "loss" in metrics else -self.sign * metrics[self.quality]

    @property
    def metrics(self) -> list[str]:
        """The metrics that are optimised beside the quality."""
        return [name for name in self.signs if name != self.quality]

    @property
    def names(self) -> list[str]:
        return [*self.signs, *self.costs]

    @property
    def directions(self) -> list[Direction]:
        """As Optuna wants them, in the order of `names`."""
        metrics: list[Direction] = [
            "maximize" if sign > 0 else "minimize" for sign in self.signs.values()
        ]
        costs: list[Direction] = ["minimize"] * len(self.costs)
        return metrics + costs

    def point(self, metrics: Mapping[str, float], costs: Mapping[str, float]) -> list[float]:
        """Quality, larger is better; then further metrics and costs, smaller is better."""
        first, *further = (sign * metrics[name] for name, sign in self.signs.items())
        return [first, *(-value for value in further), *(costs[name] for name in self.costs)]

    def points(self, rows: Sequence[TrialRow]) -> Points:
        """Shape (n, objectives), as in `point`."""
        found = [self.point({self.quality: row.quality, **row.metrics}, row.costs) for row in rows]  # type: ignore[dict-item]
        return np.array(found, dtype=float).reshape(len(rows), len(self.names))

    def excesses(self, values: Mapping[str, float]) -> dict[str, float]:
        """How far each bounded value that is known lies outside; 0 or less within."""
        return {
            name: bound.excess(values[name])
            for name, bound in self.bounds.items()
            if name in values
        }

    def broken(self, values: Mapping[str, float]) -> str:
        """Why these values are not to be had, all reasons in one; "" where they keep every
        bound.
        """
        reasons = [
            bound.broken(name, values[name])
            for name, bound in self.bounds.items()
            if name in values
        ]
        return "; ".join(reason for reason in reasons if reason)


def goals_of(settings: Settings) -> Goals:
    """Errors: ConfigError for a metric or bound that neither the task nor the costs have, with the
    nearest names.
    """
    objectives = settings.objectives
    directions = task_directions(settings)
    for key, names in {
        "quality": [objectives.quality],
        "metrics": list(objectives.metrics),
    }.items():
        for name in names:
            if name not in directions:
                raise ConfigError(
                    f"objectives.{key} must be {'one' if key == 'quality' else 'some'} of "
                    f"{list(directions)}; "
                    f"got '{name}'{nearest(name, list(directions))}"
                )
    known = [*known_names(), *directions]
    for name in objectives.bounds:
        if name not in known:
            raise ConfigError(
                f"objectives.bounds must name costs {list(COSTS)}, their ratios to the dense "
                "model's (flops_ratio) or "
                f"metrics of the task {list(directions)}; got '{name}'{nearest(name, known)}"
            )
    signs = {
        name: 1.0 if directions[name] == "maximize" else -1.0
        for name in (objectives.quality, *objectives.metrics)
    }
    _require_float_model(settings)
    return Goals(objectives.quality, signs, objectives.costs, objectives.bounds)


def task_directions(settings: Settings) -> dict[str, Direction]:
    """The metrics of the task and which way each is better."""
    return directions_of(settings.task)


def _require_float_model(settings: Settings) -> None:
    if settings.objectives.uses("estimated_latency_ms") and any(settings.method.int8):
        raise ConfigError(
            "estimated_latency_ms is of models in floating point, and method.int8 quantises them; "
            "take latency_ms, which is measured, or method.int8=[false]"
        )


@dataclass(frozen=True)
class Reference:
    """The point from which the hypervolume counts, and the dense model's costs that ratios are
    against.

    `clip` is the least FLOPs ratio that counts, for the area of two objectives along a log axis;
    None for a volume.
    """

    goals: Goals
    quality: float
    ratios: Mapping[str, float]
    metrics: Mapping[str, float]
    dense: Mapping[str, float]
    clip: float | None

    def volume(
        self, metrics: Sequence[Mapping[str, float]], costs: Sequence[Mapping[str, float]]
    ) -> float:
        """Of these models: the area over log FLOPs, or the normalised volume of other and of more
        objectives.
        """
        goals = self.goals
        if self.clip is not None:
            (cost,) = goals.costs
            ratios = [found[cost] / self.dense[cost] for found in costs]
            quality = [goals.sign * found[goals.quality] for found in metrics]
            return hypervolume(quality, ratios, goals.sign * self.quality, self.clip)
        points = [goals.point(m, c) for m, c in zip(metrics, costs, strict=True)]
        scale = np.array([1.0] * len(goals.signs) + [self.dense[name] for name in goals.costs])
        return volume(np.array(points).reshape(-1, len(scale)) / scale, np.array(self._corner()))

    def plain(self) -> dict[str, Any]:
        """As it is stored: values of metrics, ratios of costs to the dense model's."""
        metrics = {self.goals.quality: self.quality, **self.metrics}
        clip = {} if self.clip is None else {"least_ratio": self.clip}
        return {
            **metrics,
            **{f"{name}_ratio": ratio for name, ratio in self.ratios.items()},
            **clip,
        }

    def _corner(self) -> list[float]:
        return self.goals.point({self.goals.quality: self.quality, **self.metrics}, self.ratios)


def study_reference(
    settings: Settings, goals: Goals, dense: Mapping[str, float], costs: Mapping[str, float]
) -> Reference:
    """`dense` are the dense model's validation metrics, `costs` its costs.

    What is not configured follows from the task, and where that does not say, from these values.
    """
    objectives = settings.objectives
    given = objectives.references
    quality = given.get(goals.quality)
    if quality is None:
        quality = task_reference(settings.task, goals.quality)
    if quality is None:
        unit = scale_of(settings.task, goals.quality, dense[goals.quality])
        quality = dense[goals.quality] - goals.sign * WORSE * unit
    by_area = not set(given) - {goals.quality}
    area = len(goals.names) == 2 and goals.costs[0] in AXES and by_area
    bound = objectives.bounds.get(ratio_name(objectives.axis))
    least = LEAST_RATIO if bound is None or bound.least is None else bound.least
    return Reference(
        goals,
        quality,
        {name: given.get(name, 1.0) for name in goals.costs},
        {name: given.get(name, dense[name] - goals.signs[name]) for name in goals.metrics},
        {name: costs[name] for name in goals.costs},
        least if area else None,
    )
