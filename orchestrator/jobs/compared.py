"""Studies side by side, recorded where the studies are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.jobs.compare import compare, page_beside
from orchestrator.jobs.outputs import CONFIG
from orchestrator.redact import HIDDEN
from orchestrator.report.comparison import Compared, cells, header, scores
from orchestrator.tracking import TrackerError

_MLFLOW = "orchestrator.tracking.mlflow.MlflowTracker"


def compare_and_record(folders: Sequence[Path]) -> Compared:
    """Compare finished studies, and record it in every experiment of MLflow that has one of them.

    An MLflow that does not answer is told, and is no failure. Errors: ConfigError, as `compare`.
    """
    compared = compare(folders)
    for uri, experiment in _places(folders):
        _record(uri, experiment, compared, page_beside(folders))
    return compared


def _record(uri: str, experiment: str, compared: Compared, page: Path) -> None:
    # most studies are compared without it, and it takes seconds to import
    from orchestrator.tracking.side_by_side import SideBySide, record_comparison

    names = [view.name for view in compared.views]
    rows = [cells(score) for score in scores(compared)]
    try:
        if HIDDEN in uri:
            reason = "config.yaml has no passwords"
            raise TrackerError(reason, reason=reason)
        record_comparison(uri, experiment, SideBySide(names, page, header(compared), rows))
    except TrackerError as error:
        print(f"tracking: the comparison is not recorded: {error}", file=sys.stderr)


def _places(folders: Sequence[Path]) -> dict[tuple[str, str], None]:
    """The uri and experiment of each MLflow in which one of the studies is recorded."""
    places: dict[tuple[str, str], None] = {}
    for folder in folders:
        path = folder / CONFIG
        config = yaml.safe_load(path.read_text()) if path.is_file() else {}
        for tracker in _trackers(config.get("tracking", {})):
            if tracker.get("_target_") == _MLFLOW:
                places[tracker["uri"], tracker["experiment"]] = None
    return places


def _trackers(recipe: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A tracker, or those that it hands its records to."""
    yield recipe
    for inner in recipe.get("trackers", ()):
        yield from _trackers(inner)
