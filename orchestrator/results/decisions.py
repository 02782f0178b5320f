"""What decided about the trials of a study: their parameters, and how much each mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EVALUATOR = "PED-ANOVA"
"""Optuna's evaluator of importances that is asked."""


@dataclass(frozen=True)
class Importance:
    """How much one parameter tells the best trials from all; shares that sum to 1 over all of them.

    `front`: the best are those next to the front. `quality`: those of the best quality, whatever
    they cost.
    """

    name: str
    front: float
    quality: float


@dataclass(frozen=True)
class Decisions:
    """The decisions of completed trials, by number; a family of parameters is one decision.

    `importance` is empty where too few trials have completed.
    """

    trials: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    importance: Sequence[Importance] = ()
