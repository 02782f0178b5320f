"""Where random numbers come from: one seed of the study, and a stream of its own for each use."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Uses of the study's seed, or of a trial's.

    Two uses that share a stream would draw the same numbers.
    """

    PROFILE = 1
    TRIAL = 2
    SAMPLER = 3
    CONFIRMATION = 4
    BASELINE = 5
    MIXING = 6
    SCORES = 8
    COMPENSATION = 9
    ALLOCATION = 10
    EXPORT = 11
    FRESH_WEIGHTS = 2**20
    """A stream of a trial's seed, beside those of its phases, which are counted from 1."""


def seed_of(*parts: int) -> int:
    """One seed from several numbers (study seed, stream, trial), well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
