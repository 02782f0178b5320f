"""A finished plan whose files may be harmed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.search.problems import Bench, bench, silent

HERE = Path(__file__).parent
QUICK = ["phases.finetune.round_steps=2", "phases.finetune.recalibration_batches=1"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every fault is run by .ci/run, as one test of each family is."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.family)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dense baselines of this module stand."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def plan(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    """A problem and the folder of its one finished plan, not to be touched."""
    here = bench(home, tmp_path_factory.mktemp("plan"), *QUICK)
    here.evaluator(here.propose(0.5), 0, silent)
    return here, here.store.folder / "0"


@pytest.fixture
def mine(plan: tuple[Bench, Path], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(plan[1], tmp_path / "0"))
