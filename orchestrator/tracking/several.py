"""A study recorded in several places at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_modules.errors import ConfigError
from orchestrator.tracking import StudyEnd, StudyResults, Tracker, TrialRecord


class SeveralTrackers:
    """A `Tracker` that hands every record to each of `trackers`, in their order.

    One that cannot be reached raises as it does alone; what others have is not written again.
    Errors: ConfigError where there is none.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        if not trackers:
            raise ConfigError(
                "tracking.trackers must list at least one; got []: take tracking=none"
            )
        self._trackers = tuple(trackers)

    @property
    def seconds(self) -> float:
        return sum([tracker.seconds for tracker in self._trackers])

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        for tracker in self._trackers:
            tracker.open_study(name, tags, params)

    def trial(self, record: TrialRecord) -> None:
        for tracker in self._trackers:
            tracker.trial(record)

    def close_study(
        self, results: StudyResults, end: StudyEnd = "finished", at: float | None = None
    ) -> None:
        for tracker in self._trackers:
            tracker.close_study(results, end, at)
