"""The sections of the page, in their order: one function in a file of its own, one entry here."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.report.sections.decided import decided_section
from orchestrator.report.sections.front import front_section
from orchestrator.report.sections.honest import honest_section
from orchestrator.report.sections.parts import Section
from orchestrator.report.sections.pruned import pruned_section
from orchestrator.report.sections.who_pays import who_pays_section
from orchestrator.report.view import StudyView

SECTIONS: tuple[Callable[[StudyView], Section], ...] = (
    front_section,
    pruned_section,
    decided_section,
    who_pays_section,
    honest_section,
)
