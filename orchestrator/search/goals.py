"""What a study is after, as numbers: points to compare, bounds to keep, a volume to grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import nearest
from lightning_modules.tasks.metrics import Direction, scale_of
from lightning_modules.tasks.metrics import reference_of as task_reference
from orchestrator.costs import AXES, COSTS, known_names, ratio_name
from orchestrator.results.rows import TrialRow
from orchestrator.search.directions import task_directions
from orchestrator.search.front import LEAST_RATIO, Points, hypervolume, volume
from orchestrator.settings import Settings
from orchestrator.settings.objectives import Bound

WORSE = 0.5
"""Distance of the hypervolume's reference below the dense model's quality.

It is counted in small differences of the quality, and holds where nothing else says otherwise.
"""


@dataclass(frozen=True)
class Goals:
    """The metrics and costs of a study, with their directions and bounds.

    `signs` are 1 where more of a metric is better and -1 where less is. The quality comes first,
    then the further metrics.
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
        """The cost along which targets, bands and baselines stand.

        Its ratio is known before any training.
        """
        return "effective_flops" if "effective_flops" in self.costs else "flops"

    def uses(self, cost: str) -> bool:
        """Whether a cost is optimised or bounded."""
        return cost in self.costs or self.bounded(cost)

    def bounded(self, cost: str) -> bool:
        """Whether a cost, or its ratio to the dense model's, has a bound."""
        return cost in self.bounds or ratio_name(cost) in self.bounds

    def loss(self, metrics: Mapping[str, float]) -> float:
        """A number to be small: the loss where the task logs one, else the negative quality.

        The loss tells more models apart.
        """
        if "loss" in metrics:
            return metrics["loss"]
        return -self.sign * metrics[self.quality]

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
        directions: list[Direction] = []
        for sign in self.signs.values():
            directions.append("maximize" if sign > 0 else "minimize")
        for _ in self.costs:
            directions.append("minimize")
        return directions

    def point(self, metrics: Mapping[str, float], costs: Mapping[str, float]) -> list[float]:
        """Quality, larger is better; then further metrics and costs, smaller is better."""
        point = [self.sign * metrics[self.quality]]
        for name in self.metrics:
            point.append(-self.signs[name] * metrics[name])
        for name in self.costs:
            point.append(costs[name])
        return point

    def points(self, rows: Sequence[TrialRow]) -> Points:
        """Shape (n, objectives), as in `point`."""
        points = []
        for row in rows:
            metrics: dict[str, Any] = {self.quality: row.quality, **row.metrics}
            points.append(self.point(metrics, row.costs))
        return np.array(points, dtype=float).reshape(len(rows), len(self.names))

    def excesses(self, values: Mapping[str, float]) -> dict[str, float]:
        """How far each bounded value that is known lies outside; 0 or less within."""
        excesses = {}
        for name, bound in self.bounds.items():
            if name in values:
                excesses[name] = bound.excess(values[name])
        return excesses

    def broken(self, values: Mapping[str, float]) -> str:
        """Why these values break bounds, all reasons in one; "" where they keep every bound."""
        reasons = []
        for name, bound in self.bounds.items():
            reason = bound.broken(name, values[name]) if name in values else ""
            if reason:
                reasons.append(reason)
        return "; ".join(reasons)


def goals_of(settings: Settings) -> Goals:
    """The goals that the settings describe.

    Errors: ConfigError, with the nearest names, for a metric or bound that neither the task nor the
    costs have.
    """
    objectives = settings.objectives
    directions = task_directions(settings)
    _require_metrics("quality", "one", [objectives.quality], list(directions))
    _require_metrics("metrics", "some", objectives.metrics, list(directions))
    known = [*known_names(), *directions]
    for name in objectives.bounds:
        if name not in known:
            raise ConfigError(
                f"objectives.bounds must name costs {list(COSTS)}, their ratios to the dense "
                "model's (flops_ratio) or metrics of the task "
                f"{list(directions)}; got '{name}'{nearest(name, known)}"
            )
    signs = {}
    for name in (objectives.quality, *objectives.metrics):
        signs[name] = 1.0 if directions[name] == "maximize" else -1.0
    _require_float_model(settings)
    return Goals(objectives.quality, signs, objectives.costs, objectives.bounds)


def _require_metrics(key: str, amount: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Errors: ConfigError, with the nearest name, for a metric that the task does not have."""
    for name in names:
        if name not in known:
            raise ConfigError(
                f"objectives.{key} must be {amount} of {list(known)}; "
                f"got '{name}'{nearest(name, list(known))}"
            )


def _require_float_model(settings: Settings) -> None:
    if settings.objectives.uses("estimated_latency_ms") and any(settings.method.int8):
        raise ConfigError(
            "estimated_latency_ms is of models in floating point, and method.int8 quantises them; "
            "take latency_ms, which is measured, or method.int8=[false]"
        )


@dataclass(frozen=True)
class Reference:
    """The point from which the hypervolume counts.

    `quality`, `ratios` and `metrics` are the point itself; `dense` are the dense model's costs,
    against which ratios are. `clip` is the least FLOPs ratio that counts, for the area of two
    objectives along a log axis; None for a volume.
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
        """Hypervolume of models with these metrics and costs.

        It is the area over log FLOPs, or for other and for more objectives the normalised volume.
        """
        goals = self.goals
        if self.clip is not None:
            (cost,) = goals.costs
            ratios = [values[cost] / self.dense[cost] for values in costs]
            quality = [goals.sign * values[goals.quality] for values in metrics]
            return hypervolume(quality, ratios, goals.sign * self.quality, self.clip)
        points = []
        for model_metrics, model_costs in zip(metrics, costs, strict=True):
            points.append(goals.point(model_metrics, model_costs))
        scale = np.array([1.0] * len(goals.signs) + [self.dense[name] for name in goals.costs])
        scaled = np.array(points).reshape(-1, len(scale)) / scale
        return volume(scaled, np.array(self._corner()))

    def plain(self) -> dict[str, Any]:
        """As it is stored: values of metrics, ratios of costs to the dense model's."""
        plain: dict[str, Any] = {self.goals.quality: self.quality, **self.metrics}
        for name, ratio in self.ratios.items():
            plain[f"{name}_ratio"] = ratio
        if self.clip is not None:
            plain["least_ratio"] = self.clip
        return plain

    def _corner(self) -> list[float]:
        metrics = {self.goals.quality: self.quality, **self.metrics}
        return self.goals.point(metrics, self.ratios)


def study_reference(
    settings: Settings, goals: Goals, dense: Mapping[str, float], costs: Mapping[str, float]
) -> Reference:
    """`dense` are the dense model's validation metrics, `costs` its costs.

    What is not configured follows from the task, and where that does not say, from these values.
    """
    objectives = settings.objectives
    configured = objectives.references
    quality = configured.get(goals.quality)
    if quality is None:
        quality = task_reference(settings.task, goals.quality)
    if quality is None:
        dense_quality = dense[goals.quality]
        scale = scale_of(settings.task, goals.quality, dense_quality)
        quality = dense_quality - goals.sign * WORSE * scale
    only_quality = not set(configured) - {goals.quality}
    area = len(goals.names) == 2 and goals.costs[0] in AXES and only_quality
    bound = objectives.bounds.get(ratio_name(objectives.axis))
    least = LEAST_RATIO if bound is None or bound.least is None else bound.least
    ratios = {}
    dense_costs = {}
    for name in goals.costs:
        ratios[name] = configured.get(name, 1.0)
        dense_costs[name] = costs[name]
    metrics = {}
    for name in goals.metrics:
        # one unit worse than the dense model
        metrics[name] = configured.get(name, dense[name] - goals.signs[name])
    return Reference(goals, quality, ratios, metrics, dense_costs, least if area else None)
