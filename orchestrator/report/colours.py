"""Colours of Okabe & Ito, which colour-blind readers tell apart, too."""

from __future__ import annotations

FRONT_COLOUR = "#0072B2"
TRIAL = "#7F7F7F"
BASELINE_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""One for each baseline in turn; marker shapes say the same once more for grey prints."""
