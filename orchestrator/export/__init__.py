"""Export: the files in which a model leaves, and whether they do what the model does.

Called, the package is the job `export`, so that `orchestrator.export(settings, formats)` works
whatever was imported before. The import system puts the package in the place of any function of
this name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.jobs.export import Chosen
    from orchestrator.settings import Settings


class _Export(ModuleType):
    def __call__(
        self, settings: Settings, formats: Sequence[str], opset: int | None = None
    ) -> Chosen:
        """Choose a model of a finished study and write it; see `orchestrator.jobs.export`."""
        from orchestrator.jobs.export import export

        return export(settings, formats, opset)


sys.modules[__name__].__class__ = _Export
