"""Where a study is recorded, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lightning_modules.errors import UserError

TrialState = Literal["completed", "infeasible", "stopped", "failed", "rejected"]
StudyEnd = Literal["finished", "interrupted", "failed"]
CONFIRMED = "confirmed"
"""The tag that is `true` for models that were finetuned with several seeds and tested."""
ON_FRONT = "on_front"
"""The tag that is `true` for the models of the study's front."""


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class TrialRecord:
    """The record of one ended trial.

    `title` is what a person reads of it in a list. `artifacts` maps file names to their text. A
    metric `seconds` sets the trial's duration. `at` is when it ended, in seconds since the epoch;
    None: now.
    """

    number: int
    state: TrialState
    params: Mapping[str, object]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Sequence[Point] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)
    at: float | None = None
    title: str = ""


@dataclass(frozen=True)
class ModelRecord:
    """A model that was measured on test data.

    `key` is the number of its trial, or names a model of no trial: `dense`, `uniform-12`.
    """

    key: str
    title: str
    tags: Mapping[str, str]
    params: Mapping[str, object]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Finalist:
    """A model that people will use, by the key of its record, with the folder of its files.

    `aliases` say what it is the best at; `description` is Markdown.
    """

    key: str
    folder: str
    aliases: Sequence[str]
    description: str


@dataclass(frozen=True)
class StudyResults:
    """What is known of a study at its end; nothing of one that did not come to it.

    `artifacts` are files on disk. `description` is Markdown; in it `(run:12)` stands for a link to
    the run of that key, and `(file:pareto.png)` for one to an artifact; it begins with a line of
    links. `table` maps the columns of the front to their values. `finalists` are to be registered.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: Sequence[Path] = ()
    models: Sequence[ModelRecord] = ()
    description: str = ""
    table: Mapping[str, Sequence[object]] = field(default_factory=dict)
    finalists: Sequence[Finalist] = ()


class TrackerError(UserError):
    """A tracker could not record something.

    `reason` is the message without the remedy. `refused` where the tracker was reached and said no:
    it will not take the same record later either.
    """

    def __init__(self, message: str, *, reason: str, refused: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.refused = refused


class Tracker(Protocol):
    """A record of one study and its trials.

    Every call may be repeated: what is recorded already is not written again.
    """

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent in this tracker so far."""
        ...

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        """Begins the record of a study or goes on with it.

        The same `name` and, where given, the same tag `study_id` is the same study. A study begun
        anew under an old name needs a new `study_id`, or its trials pass for those already
        recorded. Further tags say what the study is about: `quality` names the metric that stands
        as `quality`, `data` and `data_digest` the data, `command` what a person typed.
        Errors: UserError when it cannot be reached.
        """
        ...

    def trial(self, record: TrialRecord) -> None:
        """Records one ended trial."""
        ...

    def close_study(
        self, results: StudyResults, end: StudyEnd = "finished", at: float | None = None
    ) -> None:
        """Adds the results of the whole study; `at` is as of a trial."""
        ...
