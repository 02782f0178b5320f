"""Tasks: LightningModules that say what the loss and the quality metrics of a model are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.tasks.classification import Classification as Classification
    from lightning_modules.tasks.control import Control as Control
    from lightning_modules.tasks.detection import Detection as Detection
    from lightning_modules.tasks.language_modeling import LanguageModeling as LanguageModeling
    from lightning_modules.tasks.multitask import DigitAndParity as DigitAndParity
    from lightning_modules.tasks.regression import Regression as Regression
    from lightning_modules.tasks.segmentation import Segmentation as Segmentation
    from lightning_modules.tasks.sequences import (
        SequenceClassification as SequenceClassification,
    )
    from lightning_modules.tasks.tabular import Tabular as Tabular
    from lightning_modules.tasks.torchvision_detection import (
        TorchvisionDetection as TorchvisionDetection,
    )
    from lightning_modules.tasks.whole import Whole as Whole
    from lightning_modules.tasks.whole import lightning as lightning

_HOME = {
    "Classification": "lightning_modules.tasks.classification",
    "Control": "lightning_modules.tasks.control",
    "Detection": "lightning_modules.tasks.detection",
    "DigitAndParity": "lightning_modules.tasks.multitask",
    "LanguageModeling": "lightning_modules.tasks.language_modeling",
    "Regression": "lightning_modules.tasks.regression",
    "Segmentation": "lightning_modules.tasks.segmentation",
    "SequenceClassification": "lightning_modules.tasks.sequences",
    "Tabular": "lightning_modules.tasks.tabular",
    "TorchvisionDetection": "lightning_modules.tasks.torchvision_detection",
    "Whole": "lightning_modules.tasks.whole",
    "lightning": "lightning_modules.tasks.whole",
}
"""Where each name is defined."""
__all__ = [
    "Classification",
    "Control",
    "Detection",
    "DigitAndParity",
    "LanguageModeling",
    "Regression",
    "Segmentation",
    "SequenceClassification",
    "Tabular",
    "TorchvisionDetection",
    "Whole",
    "lightning",
]


def __getattr__(name: str) -> Any:
    """Imports a task on first use, because its metrics take seconds to import."""
    if name not in _HOME:
        known = ", ".join(__all__)
        raise AttributeError(
            f"module 'lightning_modules.tasks' has no attribute '{name}'; it has {known}"
        )
    return getattr(importlib.import_module(_HOME[name]), name)
