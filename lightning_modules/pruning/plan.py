"""A plan: the decisions of one trial, as a value that can be stored, compared and replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_modules.errors import PlanError
from lightning_modules.pruning.schedules import SCHEDULES

Rule = Literal["quantile", "mean", "median", "absolute"]


@dataclass(frozen=True)
class Stage:
    """One threshold per group under `rule` (see thresholds.py); `method` is the whole method as plain data.

    The groups are those of the method's granularity: coupled units of the model, or single tensors of weights.
    """

    thresholds: Mapping[str, float]
    rule: Rule
    method: Mapping[str, Any]


@dataclass(frozen=True)
class Timing:
    """When a stage prunes: `steps` times along `schedule`, between fractions `start` and `end` of its finetuning.

    The stage is finetuned for steps x `rounds` rounds. With start 0 and end 1 each step is followed by `rounds`.
    `distillation` is the weight of the dense outputs in the loss, None as configured.
    `round_steps` are the optimizer steps of a round where a budget in time sets them; None: as configured.
    `accumulate` is the number of parts in which each batch was trained on, above 1 where memory ran out.
    `mixed` copies of the training data were learnt beside it where a budget in time sets them; None: as configured.
    """

    schedule: str = "one_shot"
    steps: int = 1
    rounds: int = 1
    start: float = 0.0
    end: float = 1.0
    round_steps: int | None = None
    distillation: float | None = None
    accumulate: int = 1
    mixed: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise PlanError(
                f"plan.schedule must be one of {sorted(SCHEDULES)}; got '{self.schedule}'"
            )
        if self.steps < 1 or self.rounds < 1:
            raise PlanError(
                f"plan.steps and plan.rounds must be at least 1; got {self.steps} and {self.rounds}"
            )
        if self.round_steps is not None and self.round_steps < 1:
            raise PlanError(f"plan.round_steps must be at least 1; got {self.round_steps}")
        if self.accumulate < 1:
            raise PlanError(f"plan.accumulate must be at least 1; got {self.accumulate}")
        if self.mixed is not None and self.mixed < 0:
            raise PlanError(f"plan.mixed must be at least 0; got {self.mixed}")
        if self.distillation is not None and not 0.0 <= self.distillation <= 1.0:
            raise PlanError(
                f"plan.distillation must be a weight in [0, 1]; got {self.distillation:g}"
            )
        if not 0.0 <= self.start < self.end <= 1.0:
            raise PlanError(
                f"a plan prunes between 0 <= start < end <= 1; got {self.start:g} and {self.end:g}"
            )

    @property
    def total(self) -> int:
        """Units of finetuning in all."""
        return self.steps * self.rounds

    def moments(self) -> list[int]:
        """Rounds of finetuning before each pruning step; at least one round is left after the last; shape (steps,)."""
        width = (self.end - self.start) / self.steps
        found = [
            math.floor(self.total * (self.start + width * step) + 1e-9)
            for step in range(self.steps)
        ]
        return [min(moment, self.total - 1) for moment in found]


@dataclass(frozen=True)
class Plan:
    """Stages one after the other (units, then weights of what is left), each with the same timing.

    `parent` is the number of the finished trial whose weights are inherited, None for the dense model. `activation` is
    the level of activation pruning and `int8` says whether the result is quantised; see the phases of those names.
    """

    stages: tuple[Stage, ...]
    timing: Timing = Timing()
    activation: float | None = None
    int8: bool = False
    parent: int | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Errors: PlanError when keys are missing or unknown."""
        try:
            stages = tuple(Stage(**stage) for stage in data["stages"])
            return cls(**{**data, "stages": stages, "timing": Timing(**data["timing"])})
        except (TypeError, KeyError) as error:
            raise PlanError(f"a stored plan must have the fields of Plan: {error!r}") from error
