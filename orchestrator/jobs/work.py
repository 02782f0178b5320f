"""Help with a study that another process searches, here or on another machine."""

from __future__ import annotations

import time

from lightning_modules.errors import ConfigError
from orchestrator.files import require_writable
from orchestrator.jobs.records import exchange_of
from orchestrator.jobs.workers import Workers
from orchestrator.progress import Progress
from orchestrator.search.dense import dense_folder
from orchestrator.search.prepare import prepare
from orchestrator.search.ready import DENSE, OVER, make_ready, require_same_dense
from orchestrator.search.results import front, rows, trial_row
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import help_search
from orchestrator.search.studies.queue import WANTED, own_trials, running, waiting
from orchestrator.search.studies.storage import readable
from orchestrator.search.studies.study import join_study
from orchestrator.search.studies.trial import FrozenTrial, Study
from orchestrator.search.trials.methods import check_method
from orchestrator.settings import Settings

LOOK_SECONDS = 0.5


def work(settings: Settings, name: str = "") -> None:
    """Run trials that wait in the study of this name, until its search has ended.

    Give the command of the search with `job=work`, the same `study.storage`, and either `study.out` and
    `study.baselines` on a disk that all processes share, or `study.results=mlflow`. `name` tells those apart that one
    sweep begins. Errors: UserError where the study is another one, or its dense weights are.
    """
    if settings.study.paced is not None:
        raise ConfigError(
            f"study.budget={settings.study.paced.text} paces one process; a search that others help has a number of "
            "trials: study.n_trials=..."
        )
    require_writable(settings.study.folder)
    with readable(settings):
        study = join_study(settings)
    leases = Leases(study, settings.study.lease)
    with Progress() as progress:
        if not _begun(study, leases, progress):
            progress.phase("work", f"study '{settings.study.name}' is complete: nothing to help with")
        elif settings.workers > 1:
            with Workers(settings, study, leads=False) as workers:
                while workers.busy():
                    workers.look(progress)
                    time.sleep(LOOK_SECONDS)
        else:
            _work(settings, study, leases, progress, name)


def _begun(study: Study, leases: Leases, progress: Progress) -> bool:
    """Waits until the searching process has its dense model; False where the search has ended."""
    if DENSE not in study.user_attrs:
        progress.phase("work", "waiting for the search to train or read its dense model")
    while DENSE not in study.user_attrs:
        if not leases.led():
            raise ConfigError(f"study '{study.study_name}' has no search that leads it; start one: job=search")
        time.sleep(LOOK_SECONDS)
    return not study.user_attrs.get(OVER)


def _work(settings: Settings, study: Study, leases: Leases, progress: Progress, name: str) -> None:
    data = settings.data.build()
    data.setup()
    space, stopping = settings.space.build(), settings.stopping.build()
    check_method(settings, space)
    exchange = exchange_of(settings, study)
    exchange.fetch_dense(dense_folder(settings))
    problem = prepare(settings, data, progress)
    require_same_dense(study, problem)
    ready = make_ready(problem, space, settings.study.folder / "trials", progress)
    goals, whole = problem.goals, problem.dense_costs
    progress.phase(f"work {name}".strip(), f"trials of study '{settings.study.name}', as they come")

    def on_trial(trial: FrozenTrial) -> None:
        ended = [other for other in own_trials(study) if other.state.is_finished()]
        row = trial_row(trial, goals, whole)
        progress.trial(row, front(rows(study, goals, whole), goals), len(ended), len(own_trials(study)))

    def go_on() -> bool:
        if study.user_attrs.get(OVER):
            return False
        left = [*waiting(study, study.user_attrs.get(WANTED, 0)), *running(study)]
        return leases.led() or bool(left)  # without a leader, what is there is still done

    help_search(ready.trials(study, stopping, leases, exchange), go_on, on_trial)
