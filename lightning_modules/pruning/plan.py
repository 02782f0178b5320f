"""A plan: the decisions of one trial, as a value that can be stored, compared and replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from lightning_modules.errors import PlanError
from lightning_modules.pruning.schedules import SCHEDULES
from lightning_modules.pruning.structure import Counts, Structure

Rule = Literal["quantile", "mean", "median", "absolute"]
"""The scale on which thresholds are given; see thresholds.py."""
ROUNDING = 1e-9
"""Added before rounding down, so that 2.9999999 rounds counts as 3."""


@dataclass(frozen=True)
class Thresholds:
    """What a trial asked of one stage of its method: a threshold per group, on the scale of `rule`.

    It is a record. A plan is carried out by the counts that the thresholds gave on the dense model,
    see `Plan`.
    """

    levels: Mapping[str, float]
    rule: Rule


@dataclass(frozen=True)
class Timing:
    """When a stage prunes: `steps` times along `schedule`.

    `start` and `end` are fractions of the stage's finetuning, between which it prunes. The stage is
    finetuned for steps x `rounds` rounds. With start 0 and end 1 each step is followed by `rounds`
    rounds.

    `round_steps` is the number of optimizer steps of a round if a budget in time sets it; None: as
    configured. `distillation` is the weight of the dense outputs in the loss; None: as configured.
    `accumulate` is the number of parts in which each batch was trained on; it is above 1 if memory
    ran out. `mixed` is the number of mixed copies of the training data that were learnt beside it
    if a budget in time sets it; None: as configured.
    Errors: PlanError for values out of range.
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
        """Rounds of finetuning in all."""
        return self.steps * self.rounds

    def moments(self) -> list[int]:
        """The number of finetuning rounds before each pruning step; shape (steps,).

        At least one round is left after the last step.
        """
        width = (self.end - self.start) / self.steps
        moments = []
        for step in range(self.steps):
            progress = self.start + width * step
            moment = math.floor(self.total * progress + ROUNDING)
            moments.append(min(moment, self.total - 1))
        return moments


@dataclass(frozen=True)
class Plan:
    """All that one trial does to a model.

    With the weights that it begins from, it can be carried out alone. `method` is the name of the
    method, whose settings the study records once. `kept` is the number of units that stay of each
    group, `density` the share of the weights that stays of each tensor; whatever is not named stays
    whole. A method that prunes both does so in turn, each with the same timing.

    `activation` is the level of activation pruning; see activations.py. `export` names the format
    whose file counts, with its quality, size and latency; None: the model itself. `parent` is the
    number of the finished trial whose weights are inherited; None inherits the dense model's.
    `asked` records the thresholds behind the counts.
    """

    method: str
    kept: Mapping[str, int] = field(default_factory=dict)
    density: Mapping[str, float] = field(default_factory=dict)
    timing: Timing = Timing()
    activation: float | None = None
    export: str | None = None
    parent: int | None = None
    seed: int = 0
    asked: tuple[Thresholds, ...] = ()

    def counts(self, structure: Structure) -> Counts:
        """Units that stay of each group; shape (n_groups,).

        Errors: PlanError for a group that the structure does not have.
        """
        sizes = {group.name: group.size for group in structure.groups}
        unknown = sorted(set(self.kept) - set(sizes))
        if unknown:
            raise PlanError(f"a plan must name groups of its model; this one names {unknown}")
        kept = [self.kept.get(name, size) for name, size in sizes.items()]
        return np.array(kept, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Errors: PlanError if keys are missing or unknown."""
        try:
            asked = tuple(Thresholds(**thresholds) for thresholds in data["asked"])
            timing = Timing(**data["timing"])
            return cls(**{**data, "asked": asked, "timing": timing})
        except (TypeError, KeyError) as error:
            raise PlanError(f"a stored plan must have the fields of Plan: {error!r}") from error


def by_group(structure: Structure, kept: Counts) -> dict[str, int]:
    """Counts of shape (n_groups,) by the names of the groups."""
    names = [group.name for group in structure.groups]
    return dict(zip(names, np.asarray(kept).tolist(), strict=True))
