"""Scores units by how replaceable they are: 1 minus the largest likeness to a stronger unit."""

from __future__ import annotations

import numpy as np

from lightning_modules.pruning.thresholds import Scores


def irreplaceable(likeness: Scores, strength: Scores) -> Scores:
    """1 - the largest likeness to a stronger unit; shape (n,) from (n, n) and (n,).

    Only a stronger unit can replace another. So the strongest of a set of duplicates keeps its
    score, which is 1 if it is the strongest of all, and the others fall to 0. Of equally strong
    units the one with the lower id counts as stronger.
    """
    n = len(strength)
    place = np.empty(n, dtype=np.intp)
    place[np.argsort(-strength, kind="stable")] = np.arange(n)
    is_stronger = place[None, :] < place[:, None]
    of_stronger = np.where(is_stronger, likeness, 0.0)
    scores: Scores = 1.0 - of_stronger.max(axis=1, initial=0.0)
    return scores
