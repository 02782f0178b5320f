"""From how alike units are to who can go: of a pair, the weaker."""

from __future__ import annotations

import numpy as np

from lightning_modules.pruning.thresholds import Scores


def irreplaceable(likeness: Scores, strength: Scores) -> Scores:
    """1 - the largest likeness to a stronger unit; shape (n,) from (n, n) and (n,).

    Only a stronger unit can stand in for another, so of a set of duplicates the strongest keeps its score (1 if it
    is the strongest of all) and the others fall to 0. Among equally strong ones the lower unit id counts as stronger.
    """
    place = np.empty(len(strength), dtype=np.intp)
    place[np.argsort(-strength, kind="stable")] = np.arange(len(strength))
    stronger = place[None, :] < place[:, None]
    scores: Scores = 1.0 - np.where(stronger, likeness, 0.0).max(axis=1, initial=0.0)
    return scores
