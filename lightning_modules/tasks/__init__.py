"""Tasks: LightningModules that say what the loss and the quality metrics of a model are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.tasks.classification import Classification as Classification

__all__ = ["Classification"]


def __getattr__(name: str) -> Any:
    """Imports a task on first use, because its metrics take seconds to import."""
    if name != "Classification":
        known = ", ".join(__all__)
        raise AttributeError(
            f"module 'lightning_modules.tasks' has no attribute '{name}'; it has {known}"
        )
    from lightning_modules.tasks.classification import Classification

    return Classification
