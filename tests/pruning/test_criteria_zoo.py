"""Every criterion on models as they come: transformers, concatenations, packed and shared weights,
tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import SMALL, build, randomise, structure_of
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_modules.pruning import criteria
from lightning_modules.pruning.criteria import Calibration, Criterion

ALL: list[Criterion] = [
    criteria.Ablation(slice=16),
    criteria.Activation(),
    criteria.Apoz(),
    criteria.BnScale(),
    criteria.Correlation(),
    criteria.Cosine(),
    criteria.Fisher(),
    criteria.GeometricMedian(),
    criteria.Gradient(),
    criteria.Grasp(),
    criteria.Lamp(),
    criteria.Magnitude(),
    criteria.Movement(lr=1e-3),
    criteria.Random(),
    criteria.Rank(),
    criteria.Snip(),
    criteria.SynFlow(),
    criteria.Taylor(),
]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    outputs = [
        out
        for out in tree_leaves(model(batch))
        if isinstance(out, Tensor) and out.is_floating_point()
    ]
    return torch.stack([out.square().mean() for out in outputs]).sum()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_criterion_scores_every_group(name: str) -> None:
    model, (x,) = build(name)
    structure = structure_of(name)
    data = Calibration([x, x.flip(1)], loss)
    model = randomise(model).eval()
    for criterion in ALL:
        scores = criterion(model, structure, data)
        assert np.isfinite(scores).all(), criterion
        assert [
            g.name for g in structure.groups if g.members and not scores[g.units].any()
        ] == [], criterion
