"""What is kept of a trial: the names of its attributes, and Optuna's types as the rest of this
folder knows them.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial as FrozenTrial  # re-exported: optuna stays in this folder
from optuna.trial import TrialState as TrialState

KIND, REASON, STATE, RUNGS = "kind", "reason", "state", "rungs"
MEASURED, SECONDS, TRACE = "measured", "seconds", "trace"
ENQUEUED, ORIGIN, USER_THRESHOLDS = "enqueued", "origin", "user_thresholds"
DAMAGED = "damaged"
"""Of a study: the reason by the number of each trial whose files were damaged; it is made anew
under another number.
"""
ANEW_OF = "anew_of"
"""Of a trial: the number of the damaged one that it makes anew."""
WARM = "warm"
"""The kind of a trial that was taken over from another study: no work of this one."""

Study = optuna.Study
