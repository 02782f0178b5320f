"""Random scores: the baseline that every criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.members import as_scores, living, named
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Random:
    """Uniform scores in [0, 1) from the calibration's seed alone, the same on every machine.

    A weight's score depends on the seed, its tensor's name and its place, but not on which other
    weights are scored.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        drawn = np.random.default_rng(calibration.seed).random(structure.n_units)
        return np.where(living(structure), drawn, 0.0)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        scores = {}
        for name, weight in named(model, names).items():
            seeds = [calibration.seed, zlib.crc32(name.encode())]
            drawn = np.random.default_rng(seeds).random(weight.shape)
            single = np.asarray(drawn, dtype=np.float32)
            scores[name] = torch.from_numpy(single).to(weight.device)
        return as_scores(model, scores)
