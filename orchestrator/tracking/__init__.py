"""Where a study is recorded, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

TrialState = Literal["completed", "infeasible", "stopped", "failed", "rejected"]
StudyEnd = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    name: str
    step: int
    value: float


class Tracker(Protocol):
    """A record of one study and its trials. Every call may be repeated: what is there already is not written again."""

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent in this tracker so far."""
        ...

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        """Begins the record of a study or goes on with it; UserError when it cannot be reached.

        The same `name` and, where given, the same tag `study_id` is the same study: a study begun anew under an
        old name needs a new `study_id`, or its trials pass for those already recorded.
        """
        ...

    def trial(
        self,
        number: int,
        *,
        state: TrialState,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        curves: Sequence[Point],
        artifacts: Mapping[str, str],
    ) -> None:
        """Records one ended trial; `artifacts` maps file names to their text. A metric `seconds` sets its duration."""
        ...

    def close_study(self, metrics: Mapping[str, float], artifacts: Sequence[Path], end: StudyEnd = "finished") -> None:
        """Adds the results of the whole study; `artifacts` are files on disk."""
        ...
