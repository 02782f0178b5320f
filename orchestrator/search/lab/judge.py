"""How far a model's outputs are from the dense model's, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.inputs import Inputs, run
from lightning_modules.tasks.contract import divergence_of
from orchestrator.search.lab.lab import Lab

SAMPLES = 1024
"""Validation samples that unlabelled models are compared on, at least, where there are so many."""


class Judge:
    """The task's divergence of a model from the dense one on these inputs.

    Errors: ConfigError where the task has no divergence; `setting` names what needs it.
    """

    def __init__(self, lab: Lab, inputs: Sequence[Inputs], setting: str) -> None:
        divergence = divergence_of(lab.task(lab.facts.model))
        if divergence is None:
            raise ConfigError(
                f"{setting} compares outputs, and the task has no divergence between them; set it "
                "to 0, or give the task a `divergence`"
            )
        self._divergence = divergence
        self._inputs = inputs
        self._dense = [run(lab.facts.model, batch) for batch in inputs]

    def __call__(self, model: nn.Module) -> float:
        """The mean over the batches."""
        distances = []
        for batch, dense in zip(self._inputs, self._dense, strict=True):
            distances.append(float(self._divergence(run(model, batch), dense, 1.0)))
        return float(np.mean(distances))


def validation_judge(lab: Lab, setting: str) -> Judge:
    """Compares on validation samples, which no fit has seen, and without their labels."""
    inputs = list(_first(lab.inputs(lab.facts.model, lab.data.validation()), SAMPLES))
    return Judge(lab, inputs, setting)


def _first(batches: Iterable[Inputs], samples: int) -> Iterator[Inputs]:
    """The first batches, until they have so many samples."""
    count = 0
    for inputs in batches:
        yield inputs
        count += inputs.batch or 1
        if count >= samples:
            return
