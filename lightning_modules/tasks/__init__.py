"""Tasks: LightningModules that say what the loss and the quality metrics of a model are."""

from lightning_modules.tasks.classification import Classification

__all__ = ["Classification"]
