"""Reports: the page of a study, its picture, and the tables of the terminal.

Called, the package is the job `report`, so that `orchestrator.report(settings)` works whatever was
imported before. The import system puts the package in the place of any function of this name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.settings import Settings


class _Report(ModuleType):
    def __call__(self, settings: Settings) -> Path:
        """Write the page of a study anew; see `orchestrator.jobs.report`."""
        from orchestrator.jobs.report import report

        return report(settings)


sys.modules[__name__].__class__ = _Report
