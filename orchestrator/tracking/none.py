"""No tracking: the files under the study's folder are the only record."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.tracking import StudyEnd, StudyResults, TrialRecord


class NoTracker:
    """A `Tracker` that keeps nothing."""

    seconds = 0.0

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        pass

    def trial(self, record: TrialRecord) -> None:
        pass

    def close_study(
        self, results: StudyResults, end: StudyEnd = "finished", at: float | None = None
    ) -> None:
        pass
