"""What a study optimises, what it refuses, and from where its progress is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from lightning_modules.recipe import nearest
from lightning_modules.tasks.metrics import Direction
from orchestrator.costs import COSTS, ratio_name
from orchestrator.settings.parts import Part

EngineName = Literal["pytorch", "compile", "onnxruntime", "onnxruntime_int8"]
"""The engines of `orchestrator/latency/engines.py`."""
CHANNEL_BLOCK = 8
"""Channels that ONNX Runtime's convolutions take at a time (with AVX2; 16 with AVX-512)."""
LATENCIES = ("latency_ms", "estimated_latency_ms")
"""Costs in which the time of a pass counts."""
MOST_OBJECTIVES = 4
"""Largest number of objectives of a study."""


def _cost(name: str) -> str:
    if name not in COSTS:
        raise ValueError(f"a cost must be one of {list(COSTS)}{nearest(name, list(COSTS))}")
    return name


CostKey = Annotated[str, AfterValidator(_cost)]


def four_digits(value: float) -> str:
    """Four digits, or all before the point: 0.12345 -> '0.1235', 200472.0 -> '200472'."""
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


class Bound(Part):
    """Limits of a cost or metric, on its own scale.

    A plan outside is rejected, or infeasible.
    """

    least: float | None = None
    most: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Bound:
        if self.least is None and self.most is None:
            raise ValueError("a bound needs `least`, `most` or both, as in {most: 3.0}")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(
                f"a bound's least must not be above its most; got {self.least:g} and {self.most:g}"
            )
        return self

    def excess(self, value: float) -> float:
        """How far `value` is outside; 0 or less within."""
        over = -float("inf") if self.most is None else value - self.most
        under = -float("inf") if self.least is None else self.least - value
        return max(over, under)

    def broken(self, name: str, value: float) -> str:
        """The reason to refuse `value`, or "" where it is within."""
        if self.excess(value) <= 0.0:
            return ""
        if self.most is not None and value > self.most:
            return (
                f"{name} {four_digits(value)} is over objectives.bounds.{name}.most "
                f"{four_digits(self.most)}"
            )
        assert self.least is not None
        return (
            f"{name} {four_digits(value)} is under objectives.bounds.{name}.least "
            f"{four_digits(self.least)}"
        )


class ObjectiveSettings(Part):
    """The objectives of a study, its bounds, and the reference of its hypervolume.

    `quality` and the further `metrics` are the task's, each with its own direction; `costs` are all
    to be small. The front is laid out along the first cost. `direction` says which way the quality
    of a user's own module is better, or which way each metric is. `bounds` are of costs and
    metrics, or of a cost against the dense model's: `flops_ratio`. `references` is the point from
    which the hypervolume counts: for a cost its ratio to the dense model's (1), for the quality and
    further metrics a value (as the task says, or worse than the dense model's). Latencies are of
    the `engine`, on a batch of `batch_size`, with `engine_threads` (None: torch's number).
    """

    quality: str = "accuracy"
    direction: Direction | Mapping[str, Direction] | None = None
    metrics: tuple[str, ...] = ()
    costs: Annotated[tuple[CostKey, ...], Field(min_length=1)] = ("flops",)
    bounds: Mapping[str, Bound] = {}
    references: Mapping[str, float] = {}
    engine: EngineName = "pytorch"
    batch_size: Annotated[int, Field(ge=1)] = 1
    engine_threads: Annotated[int, Field(ge=1)] | None = None

    @field_validator("bounds", "references", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        # YAML says null: Hydra refuses new keys under an empty mapping
        return {} if value is None else value

    @property
    def directions(self) -> dict[str, Direction]:
        """What the configuration says of which way metrics are better."""
        if isinstance(self.direction, str):
            return {self.quality: self.direction}
        return dict(self.direction or {})

    @property
    def axis(self) -> str:
        """The cost along which targets, bands and baselines stand.

        Its ratio is known before any training.
        """
        return "effective_flops" if "effective_flops" in self.costs else "flops"

    @property
    def layout(self) -> str:
        """The cost along which the front is laid out and candidates are spread."""
        return self.costs[0]

    @property
    def rounding(self) -> int:
        """The multiples of widths that suit the engine, where its latency is optimised or bounded.

        ONNX Runtime computes convolutions in blocks of 8 channels, and widths between take its slow
        kernels: MobileNetV2 at 50 % of its FLOPs is slower than the dense model with widths as
        they come, and 1.8 times as fast with multiples of 8.
        """
        counts = any([self.uses(latency) for latency in LATENCIES])
        return CHANNEL_BLOCK if counts and self.engine.startswith("onnxruntime") else 1

    def uses(self, cost: str) -> bool:
        """Whether a cost is optimised or bounded."""
        return cost in self.costs or self.bounded(cost)

    def bounded(self, cost: str) -> bool:
        """Whether a cost, or its ratio to the dense model's, has a bound."""
        return cost in self.bounds or ratio_name(cost) in self.bounds

    @property
    def largest_ratio(self) -> float | None:
        """The largest ratio to the dense model's along the axis that a plan may have.

        None where any may be.
        """
        largest = []
        for cost in {"flops", self.axis}:
            bound = self.bounds.get(ratio_name(cost))
            if bound is not None and bound.most is not None:
                largest.append(bound.most)
        return min(largest, default=None)

    def largest_latency_ratio(self, dense_ms: float) -> float | None:
        """The largest ratio of the first cost, a latency, that its bounds leave; None: any."""
        largest = []
        for name, whole in ((ratio_name(self.layout), 1.0), (self.layout, dense_ms)):
            bound = self.bounds.get(name)
            if bound is not None and bound.most is not None:
                largest.append(min(1.0, bound.most / whole))
        return min(largest, default=None)

    @model_validator(mode="after")
    def _distinct(self) -> ObjectiveSettings:
        metrics = (self.quality, *self.metrics)
        _require_distinct("costs", self.costs)
        _require_distinct("quality and objectives.metrics", metrics)
        names = [*metrics, *self.costs]
        if len(names) > MOST_OBJECTIVES:
            raise ValueError(
                f"a study has 2 to {MOST_OBJECTIVES} objectives; quality, metrics and costs are "
                f"{len(names)}: {names}; leave some out, or bound them (objectives.bounds)"
            )
        unknown = sorted(set(self.references) - set(names))
        if unknown:
            raise ValueError(
                "objectives.references must be of objectives.quality, objectives.metrics or "
                f"objectives.costs; got {unknown}"
            )
        return self


def _require_distinct(key: str, names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"objectives.{key} must differ from one another; got {list(names)}")
