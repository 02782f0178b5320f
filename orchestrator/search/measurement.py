"""The one seam of the search: `evaluate(proposal, number, report) -> Measurement`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lightning_modules.pruning.plan import Rule

Rung = tuple[int, Mapping[str, float]]
"""(units of finetuning since the last pruning step, validation metrics)."""
Report = Callable[[int, float, Mapping[str, float]], str | None]
"""From (rung, FLOPs ratio, validation metrics) to the reason to stop the trial, or None to go on."""


@dataclass(frozen=True)
class Proposal:
    """What a space makes of a trial's parameters: a plan without its parent."""

    thresholds: Mapping[str, float]
    rule: Rule
    schedule: str
    steps: int
    units: int


@dataclass(frozen=True)
class Measurement:
    """What came of a plan: costs by objective name, validation metrics by rung, and how it ended.

    `rejected` = over a budget, nothing was trained; `stopped` = the stopping rule ended it.
    """

    state: Literal["completed", "stopped", "rejected"]
    parent: int | None
    costs: Mapping[str, float]
    ratios: Mapping[str, float]
    kept: Mapping[str, int]
    rungs: tuple[Rung, ...] = ()
    reason: str = ""
    plan: Mapping[str, object] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Validation metrics at the last rung; empty when nothing was trained."""
        return self.rungs[-1][1] if self.rungs else {}


class Evaluate(Protocol):
    """Everything expensive stands behind this call; tests put a function in its place."""

    def __call__(self, proposal: Proposal, number: int, report: Report) -> Measurement: ...
