"""What the targets of a study are ratios of: FLOPs, or the estimated latency."""

from __future__ import annotations

from orchestrator.settings.method import MethodSettings
from orchestrator.settings.objectives import LATENCIES, ObjectiveSettings

FLOPS_TARGET = "flops_ratio"
"""The parameter of a plan that says how many of the FLOPs it may have."""
LATENCY_TARGET = "latency_ratio"
"""The parameter of a plan that says how much of the estimated latency it may have."""
TARGET_WORDS = {FLOPS_TARGET: "FLOPs", LATENCY_TARGET: "estimated latency"}


def target_of(method: MethodSettings, objectives: ObjectiveSettings) -> str:
    """The name of the parameter.

    It is the latency where that is the first cost, and plans remove units and do nothing else:
    zeros, activations and int8 have latencies that no table of shapes tells.
    """
    by_shape = method.activation is None and not any(method.int8)
    for choice in method.choices():
        by_shape = by_shape and choice.removes_units and choice.then is None
    return LATENCY_TARGET if by_shape and objectives.layout in LATENCIES else FLOPS_TARGET
