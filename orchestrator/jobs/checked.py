"""The doors of the jobs: what can be told without torch and Lightning, which take seconds to
import, is told first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any

from lightning_modules.recipe import Recipe, locate
from orchestrator.files import require_writable
from orchestrator.jobs.ends import record_end, tracker_of
from orchestrator.jobs.outputs import Outputs, finished_before
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.jobs.inspect import Inspection

_OURS = ("lightning_modules.", "orchestrator.", "torch.", "optuna.")


def search(settings: Settings) -> Outputs:
    """Search, confirm, export, log; or show a study that is complete. See `Outputs` for what is
    returned.

    Errors: UserError, before anything expensive, for whatever the configuration has wrong.
    """
    require_writable(settings.study.folder)
    if (before := _complete(settings)) is not None:
        return before
    check_names(settings)
    from orchestrator.jobs.search import search

    return search(settings)


def inspect(settings: Settings) -> Inspection:
    """Print and return what `job=search` would work on. Errors: UserError, as there."""
    begin = time.perf_counter()
    check_names(settings)
    from orchestrator.jobs.inspect import inspect

    return inspect(settings, time.perf_counter() - begin)


def check_names(settings: Settings) -> None:
    """Errors: ConfigError for a class that is not there or does not take its arguments; the user's
    own come first.
    """
    recipes = list(_recipes(settings))
    for recipe, given in sorted(recipes, key=lambda pair: pair[0].target.startswith(_OURS)):
        recipe.check(**(_offered(recipe) if recipe is settings.task else given))


def _complete(settings: Settings) -> Outputs | None:
    """A study that has all that is asked for, shown. Where its method leaves `depth` open, either
    will do.
    """
    for depth in (settings.depth, not settings.depth):
        if (before := finished_before(settings.with_depth(depth))) is not None:
            more = (
                "more trials: study.n_trials=..."
                if settings.study.budget is None
                else "more time: study.budget=..."
            )
            more = "every combination was tried" if before.summary.get("exhausted") else more
            before.show(f"this study is complete; {more}")
            record_end(tracker_of(settings), before)
            return before
    return None


def _offered(task: Recipe) -> dict[str, Any]:
    """What a task is built with, as far as its constructor asks for it."""
    accepted = signature(locate(task.target)).parameters
    return {
        name: None
        for name in ("model", "num_classes", "data")
        if name == "model" or name in accepted
    }


def _recipes(settings: Settings) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Each with what it is given beside its own arguments; those that import least first."""
    yield settings.model, {}
    yield settings.tracking, {}
    for method in settings.method.choices():
        for stage in method.stages():
            yield stage.scoring(), {}
    for how in (settings.phases.train, settings.phases.finetune):
        yield how.optimizer, {"params": ()}
    yield settings.data, {}
    yield settings.task, {}
    yield settings.space, {}
    yield settings.stopping, {}
