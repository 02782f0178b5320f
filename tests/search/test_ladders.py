"""The global ranking of the baselines."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.pruning.structure import Group, Structure
from orchestrator.search.confirmation.ladders import global_counts

SIZES = (4, 8)
STARTS = (0, 4)
GROUPS = tuple(
    Group(f"g{i}", start, size, (), True)
    for i, (start, size) in enumerate(zip(STARTS, SIZES, strict=True))
)
STRUCTURE = Structure(GROUPS, {}, (), (), (), 1, 1)


@pytest.mark.parametrize("shift", [0.0, -0.5, -5.0])
def test_a_ranking_keeps_as_many_as_the_target_allows_whatever_the_sign_of_scores(
    shift: float,
) -> None:
    scores = np.random.default_rng(0).random(12) + shift
    for target in range(2, 13):
        kept = global_counts(
            STRUCTURE, scores, STRUCTURE.full(), lambda counts: int(counts.sum()), target
        )
        assert kept.sum() == target
        assert (kept >= 1).all()
