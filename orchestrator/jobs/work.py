"""Help with a study that another process searches, here or on another machine."""

from __future__ import annotations

import time

from orchestrator.progress import Progress
from orchestrator.search.studies.recorded import with_recorded_depth
from orchestrator.settings import Settings
from orchestrator.workers.helping import POLL_SECONDS, dense_is_ready, help_alone, joined
from orchestrator.workers.pool import Workers


def work(settings: Settings, name: str = "") -> None:
    """Run trials that wait in the study of this name, until its search has ended.

    Give the command of the search with `job=work`, the same `study.storage`, and either `study.out`
    and `study.baselines` on a disk that all processes share, or `study.results=mlflow`. `name`
    tells those apart that one sweep begins. Errors: UserError where the study is another one, or
    its dense weights are.
    """
    if settings.workers == 1:
        help_alone(settings, name)
        return
    settings = with_recorded_depth(settings)
    study, leases = joined(settings)
    with Progress(quiet=settings.quiet) as progress:
        if dense_is_ready(study, leases, progress):
            with Workers(settings, study, leads=False) as workers:
                while workers.busy():
                    workers.look(progress)
                    time.sleep(POLL_SECONDS)
