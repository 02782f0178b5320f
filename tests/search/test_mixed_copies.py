"""How many mixed copies of the training data a study learns, where that follows from its budget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from orchestrator.search.pace.pacing import MIXED_EPOCHS, MOST_MIXED, mixed_copies
from orchestrator.settings.budget import parse_budget
from tests.search.problems import lab_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


class Case:
    """A problem whose pass over the data takes `seconds`, and the pace of a budget."""

    def __init__(self, home: Path, *overrides: str, seconds: float = 10.0) -> None:
        self.lab = lab_of(home, *overrides)
        if self.lab.mixing is not None:
            self.lab.mixing.seconds = seconds
        self.study = optuna.create_study(directions=["maximize", "minimize"])

    def copies(self, budget: str, epochs: tuple[float, ...]) -> int | None:
        steps = [each * len(self.lab.data.train_batches(0)) for each in epochs]
        pacing: Any = SimpleNamespace(budget=parse_budget(budget), target_steps=steps)
        return mixed_copies(self.lab, self.study, pacing)


@pytest.mark.parametrize(
    ("budget", "epochs", "copies"),
    [
        ("600s", (0.5 * MIXED_EPOCHS, 1.5 * MIXED_EPOCHS), 3),  # a twentieth of it: 30 seconds
        ("599s", (MIXED_EPOCHS,), 2),
        ("100s", (MIXED_EPOCHS,), 0),
        ("1d", (MIXED_EPOCHS,), MOST_MIXED),
        ("1d", (0.9 * MIXED_EPOCHS, MIXED_EPOCHS), 0),
        ("1d", (), 0),
        ("40epochs", (MIXED_EPOCHS,), None),
    ],
)
def test_long_rungs_have_what_a_twentieth_of_the_budget_pays_for(
    home: Path, budget: str, epochs: tuple[float, ...], copies: int | None
) -> None:
    assert Case(home).copies(budget, epochs) == copies


def test_a_study_keeps_its_number_when_it_goes_on(home: Path) -> None:
    case = Case(home)
    assert case.copies("600s", (20.0,)) == 3
    assert case.copies("1d", (20.0,)) == 3
    assert case.copies("600s", (1.0,)) == 3


@pytest.mark.parametrize("how", ["mixed=2", "weight=0.0", None])
def test_what_is_configured_stands(home: Path, how: str | None) -> None:
    name = "phases.finetune.distillation"
    assert (
        Case(home, f"{name}=null" if how is None else f"{name}.{how}").copies("1d", (20.0,)) is None
    )
