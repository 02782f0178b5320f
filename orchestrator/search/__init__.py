"""The search: what to try next, from which parent, for how long, and which results are best.

Called, the package is the job `search`, so that `orchestrator.search(settings)` works whatever was
imported before. The import system puts the package in the place of any function of this name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.jobs.study import Study
    from orchestrator.settings import Settings


class _Search(ModuleType):
    def __call__(self, settings: Settings) -> Study:
        """Search, confirm, export, log, and give the study; see `orchestrator.jobs.checked`."""
        from orchestrator.jobs.checked import search
        from orchestrator.jobs.study import open_study

        search(settings)
        return open_study(settings.study.folder)


sys.modules[__name__].__class__ = _Search
