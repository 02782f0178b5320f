"""A plan: the decisions of one trial, as a value that can be stored, compared and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_modules.errors import PlanError
from lightning_modules.pruning.schedules import SCHEDULES

Rule = Literal["quantile", "mean", "median", "absolute"]


@dataclass(frozen=True)
class Plan:
    """One threshold per group under `rule` (see thresholds.py), and how to get there.

    `steps` pruning steps along `schedule`, `units` units of finetuning after each; `parent` is the number of the
    finished trial whose weights are inherited, None for the dense model; `criterion` is its recipe as JSON.
    """

    thresholds: Mapping[str, float]
    rule: Rule
    criterion: Mapping[str, Any]
    schedule: str = "one_shot"
    steps: int = 1
    units: int = 1
    parent: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise PlanError(f"plan.schedule must be one of {sorted(SCHEDULES)}; got '{self.schedule}'")
        if self.steps < 1 or self.units < 1:
            raise PlanError(f"plan.steps and plan.units must be at least 1; got {self.steps} and {self.units}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Errors: PlanError when keys are missing or unknown."""
        try:
            return cls(**data)
        except TypeError as error:
            raise PlanError(f"a stored plan must have the fields of Plan: {error}") from error
