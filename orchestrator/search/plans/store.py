"""The folder of a study's finished plans.

It says which plans there are, what a trial may inherit, and takes what a trial leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from lightning_modules.errors import DataError
from lightning_modules.pruning.plan import Plan
from orchestrator.search.lab.facts import Facts
from orchestrator.search.plans.finished import (
    PLAN,
    Finished,
    finished_weights,
    load_finished,
    nearest_parent,
    read_plan,
    save_plan,
)
from orchestrator.search.plans.lineage import Lineage, lineage_in


@dataclass(frozen=True)
class PlanStore:
    """Finished plans in `folder`, one folder for each trial; it is the only state.

    `finished_numbers` lists the study's finished trials: only these may be parents, as others may
    be of a killed run. None: every plan in the folder is of a finished trial.
    """

    folder: Path
    facts: Facts
    finished_numbers: Callable[[], Container[int]] | None = None
    _read: dict[int, Finished] = field(default_factory=dict, repr=False)

    def of(self, number: int) -> Path:
        """The folder of a trial's plan."""
        return self.folder / str(number)

    def finished(self) -> list[Finished]:
        """Every whole plan in the folder, also of other workers and earlier runs."""
        saved = {}
        for path in self.folder.glob(f"*/{PLAN}"):
            folder = path.parent
            if folder.name.isdigit():
                saved[int(folder.name)] = folder
        numbers = saved if self.finished_numbers is None else self.finished_numbers()
        current = {}
        for number in sorted(saved):
            if number in numbers:
                current[number] = self._read.get(number) or self.read(saved[number])
        self._read.clear()
        self._read.update(current)
        return list(current.values())

    def read(self, folder: Path) -> Finished:
        """The finished plan in a folder.

        Errors: DataError for one that is damaged, or another trial's.
        """
        plan = load_finished(folder, self.facts.structure, self.facts.weight_names)
        if str(plan.number) != folder.name:
            raise DataError(
                f"{folder / PLAN} must be the plan of trial {folder.name}; it is that of "
                f"{plan.number}"
            )
        return plan

    def parent_of(self, plan: Plan, number: int) -> Finished | None:
        """The cheapest finished plan that contains this one; None: the dense model.

        `number` is the trial's own.
        """
        others = [other for other in self.finished() if other.number != number]
        return nearest_parent(others, self._needs(plan))

    def _needs(self, plan: Plan) -> npt.NDArray[np.float64]:
        """What a parent has at least: units per group, then the density of each weight tensor."""
        kept = plan.counts(self.facts.structure).astype(float)
        density = [plan.density.get(name, 1.0) for name in self.facts.weight_names]
        return np.concatenate([kept, density])

    def weights(self, plan: Finished) -> dict[str, Tensor]:
        """The weights of a finished plan.

        Errors: DataError where they are damaged.
        """
        facts = self.facts
        return finished_weights(self.of(plan.number), plan, facts.model, facts.structure)

    def lineage(self, plan: Finished) -> Lineage:
        folder = self.of(plan.number)
        return lineage_in(read_plan(folder), folder)

    def save(self, number: int, document: Mapping[str, Any], model: nn.Module) -> None:
        save_plan(self.of(number), document, model)
