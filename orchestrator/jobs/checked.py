"""The doors of the jobs: mistakes that need no torch and Lightning are reported first.

Torch and Lightning take seconds to import.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.recipe import Recipe, locate
from orchestrator.files import require_writable
from orchestrator.jobs.ends import record_end, tracker_of
from orchestrator.jobs.outputs import Outputs, finished_before
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.jobs.check import Checked
    from orchestrator.jobs.export import Chosen
    from orchestrator.jobs.inspect import Inspection
    from orchestrator.report.comparison import Compared

_OURS = ("lightning_modules.", "orchestrator.", "torch.", "optuna.")


def search(settings: Settings) -> Outputs:
    """Search, confirm, export, log; or show a study that is complete. Returns `Outputs`.

    Errors: UserError, before anything expensive, for every mistake in the configuration.
    """
    require_writable(settings.study.folder)
    before = _complete(settings)
    if before is not None:
        return before
    check_names(settings)
    from orchestrator.jobs.search import search

    return search(settings)


def inspect(settings: Settings) -> Inspection:
    """Print and return what `job=search` would work on.

    Errors: UserError, as there.
    """
    begin = time.perf_counter()
    check_names(settings)
    from orchestrator.jobs.inspect import inspect

    return inspect(settings, time.perf_counter() - begin)


def export(settings: Settings, formats: Sequence[str], opset: int | None = None) -> Chosen:
    """Choose a model of a finished study and write it in these formats.

    Errors: UserError for a study that is not finished, for a rule that no model meets, and for
    formats that do not exist.
    """
    from orchestrator.jobs.export import export

    return export(settings, formats, opset)


def report(settings: Settings) -> Path:
    """Write the report page of a study anew, also while it runs; returns its path.

    Errors: UserError for a study that has no trial.
    """
    from orchestrator.jobs.report import report

    return report(settings)


def compare(settings: Settings, studies: Sequence[str]) -> Compared:
    """Show studies below `study.out` side by side, on a page and in a table.

    `studies` are names or patterns of names; none means all that are finished.
    MLflow has it as a run where it has the studies.
    Errors: ConfigError for fewer than two, and for one that is not finished.
    """
    from orchestrator.jobs.compare import studies_in
    from orchestrator.jobs.compared import compare_and_record

    return compare_and_record(studies_in(settings.study.out, studies))


def check(settings: Settings) -> Checked:
    """Print and return what one batch shows of model, data and task.

    Errors: ConfigError that lists all faults together.
    """
    from orchestrator.jobs.check import check

    return check(settings)


def check_names(settings: Settings) -> None:
    """Checks that each class exists and takes its arguments; the user's own come first.

    Errors: ConfigError for one that does not.
    """

    def ours(pair: tuple[Recipe, dict[str, Any]]) -> bool:
        return pair[0].target.startswith(_OURS)

    for recipe, given in sorted(_recipes(settings), key=ours):
        extra = _offered(recipe) if recipe is settings.task else given
        recipe.check(**extra)


def _complete(settings: Settings) -> Outputs | None:
    """A study that has all that is asked for, shown; None where there is none.

    Where its method leaves `depth` open, either will do.
    """
    for depth in (settings.depth, not settings.depth):
        before = finished_before(settings.with_depth(depth))
        if before is None:
            continue
        if before.summary.get("exhausted"):
            more = "every combination was tried"
        elif settings.study.budget is None:
            more = "more trials: study.n_trials=..."
        else:
            more = "more time: study.budget=..."
        before.show(f"this study is complete; {more}", quiet=settings.quiet)
        record_end(settings, tracker_of(settings), before)
        return before
    return None


def _offered(task: Recipe) -> dict[str, Any]:
    """The arguments that a task is built with, as far as its constructor asks for them."""
    accepted = signature(locate(task.target)).parameters
    offered: dict[str, Any] = {"model": None}
    for name in ("num_classes", "data"):
        if name in accepted:
            offered[name] = None
    return offered


def _recipes(settings: Settings) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Each recipe with what it is given beside its own arguments; those that import least first."""
    yield settings.model, {}
    yield settings.tracking, {}
    for method in settings.method.choices():
        for stage in method.stages():
            yield stage.scoring(), {}
    for phase in (settings.phases.train, settings.phases.finetune):
        if not phase.own:
            yield phase.optimizer, {"params": ()}
    yield settings.data, {}
    yield settings.task, {}
    yield settings.space, {}
    yield settings.stopping, {}
