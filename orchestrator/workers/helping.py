"""One process that runs the trials of a study which another process searches."""

from __future__ import annotations

import time
from collections.abc import Callable

from lightning_modules.data.contract import ready_data
from lightning_modules.errors import ConfigError
from orchestrator.files import require_writable
from orchestrator.progress import Progress
from orchestrator.search.confirmation.final import Confirmation
from orchestrator.search.confirmation.sharing import HELPED, SHARED, take_part
from orchestrator.search.lab.dense import dense_folder
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.ready import (
    DENSE,
    OVER,
    make_ready,
    require_same_dense,
    rules_of,
    store_of,
)
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import help_search
from orchestrator.search.studies.previewed import allocations_in
from orchestrator.search.studies.queue import WANTED, own_trials, running, waiting
from orchestrator.search.studies.recorded import with_recorded_depth
from orchestrator.search.studies.results import front, rows, trial_row
from orchestrator.search.studies.storage import readable
from orchestrator.search.studies.study import Trials, join_study
from orchestrator.search.studies.trial import FrozenTrial, Study
from orchestrator.search.trials.allocation_search import allocation_search
from orchestrator.search.trials.evaluate import Evaluator, trial_recipe
from orchestrator.search.trials.methods import PreparedMethod, check_method
from orchestrator.settings import Settings
from orchestrator.workers.exchange import exchange_of

POLL_SECONDS = 0.5
"""Seconds between two looks at the study."""


def help_alone(
    settings: Settings, name: str = "", told: Callable[[str], object] = lambda doing: None
) -> None:
    """Run trials that wait in the study until its search has ended.

    `told` is given each phase of the work as it begins.
    Errors: as in `joined` and `dense_is_ready`.
    """
    settings = with_recorded_depth(settings)
    study, leases = joined(settings)
    with Progress(quiet=settings.quiet, told=told) as progress:
        if dense_is_ready(study, leases, progress):
            _work(settings, study, leases, progress, name)


def joined(settings: Settings) -> tuple[Study, Leases]:
    """The study of this name.

    Errors: UserError where it is another one, or is paced.
    """
    if settings.study.budget is not None:
        raise ConfigError(
            f"study.budget={settings.study.budget.text} paces one process; a search that others "
            "help has a number of trials: study.n_trials=..."
        )
    require_writable(settings.study.folder)
    with readable(settings):
        study = join_study(settings)
    return study, Leases(study, settings.study.lease)


def dense_is_ready(study: Study, leases: Leases, progress: Progress) -> bool:
    """Wait until the searching process has its dense model; False where the search has ended.

    Errors: ConfigError where no process searches.
    """
    if DENSE not in study.user_attrs:
        progress.phase("work", "waiting for the search to train or read its dense model")
    while DENSE not in study.user_attrs:
        if not leases.led():
            raise ConfigError(
                f"study '{study.study_name}' has no search that leads it; start one: job=search"
            )
        time.sleep(POLL_SECONDS)
    if study.user_attrs.get(OVER):
        progress.phase("work", f"study '{study.study_name}' is complete: nothing to help with")
        return False
    return True


def _work(settings: Settings, study: Study, leases: Leases, progress: Progress, name: str) -> None:
    space = settings.space.build()
    check_method(settings, space)
    data = ready_data(settings.data)
    exchange = exchange_of(settings, study)
    exchange.fetch_dense(dense_folder(settings))
    final = prepare(settings, data, progress)
    require_same_dense(study, final.facts)
    ready = make_ready(settings, final.lab, space, progress)
    ready = ready.with_allocations(allocations_in(study, final.facts.structure))
    store = store_of(settings, final.facts, study)
    rules = rules_of(settings, final.facts, settings.stopping.build())
    evaluator = Evaluator(
        final.lab,
        trial_recipe(settings, final.lab),
        store,
        may_save=leases.require,
        allocations=allocation_search(settings, final.lab),
    )
    trials = Trials(study, ready.space, ready.context, evaluator, rules, leases, exchange)
    confirmation = Confirmation(final, store, settings.study.folder, progress)
    study.set_user_attr(HELPED, True)
    progress.phase(f"work {name}".strip(), f"trials of study '{settings.study.name}', as they come")
    _help(trials, confirmation, ready.methods[0])


def _help(trials: Trials, confirmation: Confirmation, method: PreparedMethod) -> None:
    """Run trials, then confirm models, as they come, until the leader has all or is gone."""
    study = trials.study
    goals = trials.rules.goals
    progress = confirmation.progress

    def on_trial(trial: FrozenTrial) -> None:
        ended = [other for other in own_trials(study) if other.state.is_finished()]
        row = trial_row(trial, goals)
        progress.trial(row, front(rows(study, goals), goals), len(ended), len(own_trials(study)))

    def go_on() -> bool:
        if study.user_attrs.get(OVER) or study.user_attrs.get(SHARED):
            return False
        left = [*waiting(study, study.user_attrs.get(WANTED, 0)), *running(study)]
        # without a leader, the trials that are left are still done
        return trials.leases.led() or bool(left)

    while True:
        help_search(trials, go_on, on_trial)
        if study.user_attrs.get(OVER) or not trials.leases.led():
            return
        if not take_part(study, confirmation, method):
            time.sleep(POLL_SECONDS)
