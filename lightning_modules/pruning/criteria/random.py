"""Random scores: the baseline every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Random:
    """Uniform in [0, 1), from the calibration's seed alone: the same units on every machine."""

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return np.random.default_rng(calibration.seed).random(structure.n_units)
