"""How wrong what follows a group gets as the group's units go, one after another.

The others make up for them as well as they can; see the criterion `SecondOrder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

ErrorCurve = Sequence[tuple[float, float]]
"""Points from no unit to all: the share of the group's units that are gone, and the squared error
of what its consumers put out, over the variance."""
ErrorCurves = Mapping[str, ErrorCurve]
"""Curves by the names of the groups."""


def error_at(curve: ErrorCurve, removed: float) -> float:
    """The error with this share of the units gone, on the line between two points."""
    shares, errors = zip(*curve, strict=True)
    return float(np.interp(removed, shares, errors))
