"""What is stored of a trial: the names of its attributes, and Optuna's types for this folder."""

from __future__ import annotations

import optuna

# re-exported: optuna stays in this folder
from optuna.trial import FrozenTrial as FrozenTrial
from optuna.trial import TrialState as TrialState

KIND = "kind"
REASON = "reason"
STATE = "state"
RUNGS = "rungs"
MEASURED = "measured"
SECONDS = "seconds"
TRACE = "trace"
ENQUEUED = "enqueued"
ORIGIN = "origin"
USER_THRESHOLDS = "user_thresholds"
DAMAGED = "damaged"
"""Attribute of a study: a reason by the number of each trial whose files were damaged.

Such a trial is made anew under another number.
"""
ANEW_OF = "anew_of"
"""Attribute of a trial: the number of the damaged one that it makes anew."""
WARM = "warm"
"""The kind of a trial that was taken over from another study; this one did no work for it."""

Study = optuna.Study
