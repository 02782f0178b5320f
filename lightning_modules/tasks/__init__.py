"""Tasks: LightningModules that say what the loss and the quality metrics of a model are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.tasks.classification import Classification as Classification

__all__ = ["Classification"]


def __getattr__(name: str) -> Any:
    """A task brings its metrics along, which take seconds to import: only where it is asked for."""
    if name != "Classification":
        raise AttributeError(
            f"module 'lightning_modules.tasks' has no attribute '{name}'; it has {', '.join(__all__)}"
        )
    from lightning_modules.tasks.classification import Classification

    return Classification
