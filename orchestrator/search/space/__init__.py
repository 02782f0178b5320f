"""Spaces: what Optuna may vary, and the plan that its parameters stand for."""

from orchestrator.search.space.allocated import Allocation, Hierarchical, Hybrid
from orchestrator.search.space.choices import Choices
from orchestrator.search.space.contract import Params, SearchContext, Space
from orchestrator.search.space.thresholds import Patterns, PerGroup, Uniform

__all__ = [
    "Allocation",
    "Choices",
    "Hierarchical",
    "Hybrid",
    "Params",
    "Patterns",
    "PerGroup",
    "SearchContext",
    "Space",
    "Uniform",
]
