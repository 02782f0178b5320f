"""The report page of a study, made anew from its files; also while the study runs."""

from __future__ import annotations

from pathlib import Path

from lightning_modules.errors import ConfigError
from orchestrator.jobs.outputs import BASELINES, FRONT, PAGE, RUNGS_FILE, SUMMARY, TRIALS
from orchestrator.jobs.view import Known, known_from, read_known, view_of
from orchestrator.report.charts import can_draw, write_charts
from orchestrator.report.page import write_page
from orchestrator.results.decisions import Decisions
from orchestrator.results.rows import (
    AnyRow,
    ConfirmedRow,
    Rows,
    RungRow,
    TrialRow,
    read_csv,
)
from orchestrator.settings import Settings
from orchestrator.stored import read_cache

PICTURES = "pictures"
"""The folder of the page's charts as SVG and PNG."""


def report(settings: Settings) -> Path:
    """Write `runs/<study>/report.html` and say where it is; returns its path.

    Its charts come as pictures beside it where the package that draws them is installed. What is
    not there yet is left out. Errors: ConfigError where the study has no trial.
    """
    folder = settings.study.folder
    known = read_known(folder) or known_from(settings)
    trials, decisions = _trials(settings, known)
    if not trials:
        raise ConfigError(
            f"job=report shows a study that has a trial; {folder} has none: give study.name=..., "
            "or search first with the same command without job=report"
        )
    confirmed = _read(folder / BASELINES, ConfirmedRow)
    rows = Rows(
        trials,
        _read(folder / FRONT, ConfirmedRow),
        confirmed[1:],
        confirmed[0] if confirmed else None,
    )
    summary = read_cache(folder / SUMMARY, dict) or {}
    rungs = _read(folder / RUNGS_FILE, RungRow)
    path = folder / PAGE
    view = view_of(folder, known, rows, rungs, summary, decisions)
    write_page(path, view)
    print(f"the page: {path}")
    if can_draw():
        pictures = write_charts(folder / PICTURES, view)
        print(f"its charts: {', '.join([str(picture) for picture in pictures])}")
    return path


def _trials(settings: Settings, known: Known) -> tuple[list[TrialRow], Decisions | None]:
    """The trials of a finished study by its table, those of one that runs by its storage.

    Decisions that stand in a file beside the table are None.
    """
    table = settings.study.folder / TRIALS
    if table.is_file():
        return read_csv(table, TrialRow), None
    # optuna takes a second to import
    from orchestrator.search.goals import Goals
    from orchestrator.search.studies.recorded import decisions_so_far, rows_so_far

    goals = Goals(known.quality, {known.quality: known.sign}, known.costs)
    return rows_so_far(settings, goals), decisions_so_far(settings, goals)


def _read(path: Path, row_type: type[AnyRow]) -> list[AnyRow]:
    return read_csv(path, row_type) if path.is_file() else []
