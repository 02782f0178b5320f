"""Classification of texts and other sequences, whose batches have names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_modules.data.named import INDEX, LABELS
from lightning_modules.tasks.classification import Classification, logits_of


def named_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """What the network takes by keyword: all of a batch but its labels and its index."""
    return {name: value for name, value in batch.items() if name not in (LABELS, INDEX)}


class SequenceClassification(Classification):
    """Classification of batches by name: `labels` (N,), and inputs that the network takes by name.

    Samples are not mixed by pairs: half a word is none.
    """

    classifies = False

    def logits(self, batch: Any) -> Any:
        return logits_of(self.model(**named_inputs(batch)))

    def targets(self, batch: Any) -> Tensor:
        return batch[LABELS]
