"""The one seam of the search: `evaluate(plan, number, report) -> Measurement`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lightning_modules.pruning.plan import Plan
from orchestrator.costs import with_ratios

RoundResult = tuple[int, Mapping[str, float]]
"""(rounds of finetuning since the last pruning step, validation metrics)."""
Report = Callable[[int, float, Mapping[str, float]], str | None]
"""Maps (rung, FLOPs ratio, validation metrics) to the reason to stop the trial, or None."""


@dataclass(frozen=True)
class Measurement:
    """What came of a plan: costs by name, validation metrics by round, and how it ended.

    `kept` are units per group, `density` the share of nonzero weights of each tensor that has been
    pruned, `trained_rounds` the rounds of finetuning spent in this trial. `plan` is the plan as
    plain data. `rejected` means: outside a bound that is known before training, and nothing was
    trained. `stopped` means: the stopping rule or the guard ended it.
    """

    state: Literal["completed", "stopped", "rejected"]
    parent: int | None
    costs: Mapping[str, float]
    ratios: Mapping[str, float]
    kept: Mapping[str, int]
    rungs: tuple[RoundResult, ...] = ()
    reason: str = ""
    plan: Mapping[str, object] = field(default_factory=dict)
    method: str = ""
    density: Mapping[str, float] = field(default_factory=dict)
    trained_rounds: int = 0

    @property
    def values(self) -> Mapping[str, float]:
        """Costs, ratios and, of a completed trial, metrics: all that may be bounded, by name."""
        metrics = self.metrics if self.state == "completed" else {}
        return {**with_ratios(self.costs, self.ratios), **metrics}

    @property
    def metrics(self) -> Mapping[str, float]:
        """Validation metrics after the last round; empty when nothing was trained."""
        return self.rungs[-1][1] if self.rungs else {}

    def to_json(self) -> dict[str, Any]:
        """What a study stores of it, beside its state and its rungs."""
        return {
            "parent": self.parent,
            "costs": dict(self.costs),
            "ratios": dict(self.ratios),
            "kept": dict(self.kept),
            "metrics": dict(self.metrics),
            "plan": dict(self.plan),
            "method": self.method,
            "density": dict(self.density),
            "trained_rounds": self.trained_rounds,
        }


class Evaluate(Protocol):
    """Everything expensive stands behind this call; tests put a function in its place.

    `plan` has no parent and no seed yet. Whoever evaluates it completes it, and the measurement has
    the whole plan.
    """

    def __call__(self, plan: Plan, number: int, report: Report) -> Measurement: ...
