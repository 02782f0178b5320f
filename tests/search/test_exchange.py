"""Plans of processes that share no folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest

from lightning_modules.errors import UserError
from lightning_modules.pruning.plan import Plan
from orchestrator.search.plans.finished import PLAN
from orchestrator.search.plans.measurement import Measurement, Report
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import run_trials
from orchestrator.search.studies.study import Trials
from orchestrator.search.studies.trial import TrialState
from tests.search.test_study import RULES, SPACE, context, pretend, start


class Store:
    """Folders in a folder; `down` makes it fail."""

    def __init__(self, root: Path) -> None:
        self.root, self.down = root, False

    def put(self, folder: Path, name: str) -> None:
        if self.down:
            raise UserError("the store must answer")
        shutil.copytree(folder, self.root / name, dirs_exist_ok=True)

    def get(self, name: str, folder: Path) -> None:
        if not folder.exists():
            shutil.copytree(self.root / name, folder)


def run(study: optuna.Study, exchange: Exchange, n_trials: int) -> None:
    def saves(plan: Plan, number: int, report: Report) -> Measurement:
        folder = exchange.models / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PLAN).write_text(str(number))
        return pretend(plan, number, report)

    leases = Leases(study, 60.0)
    with leases.leading():
        run_trials(
            Trials(study, SPACE, context(), saves, RULES, leases, exchange),
            n_trials,
            lambda trial: None,
        )


def test_what_one_process_has_told_another_fetches(tmp_path: Path) -> None:
    study, store = start(tmp_path), Store(tmp_path / "store")
    run(study, Exchange(study, tmp_path / "a", store), 3)
    (tmp_path / "a" / "9").mkdir()  # of a trial that nobody told of
    there = Exchange(study, tmp_path / "b", store)
    there.fetch()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["0", "1", "2"]
    assert (tmp_path / "b" / "2" / PLAN).read_text() == "2"


def test_a_trial_is_told_only_after_its_plan_is_published(tmp_path: Path) -> None:
    study, store = start(tmp_path), Store(tmp_path / "store")
    exchange = Exchange(study, tmp_path / "a", store)
    run(study, exchange, 1)
    store.down = True
    with pytest.raises(UserError, match="must answer"):
        run(study, exchange, 2)
    assert study.get_trials()[1].state == TrialState.WAITING
    store.down = False
    run(study, exchange, 2)
    assert study.get_trials()[1].state == TrialState.COMPLETE
    assert (store.root / "trials" / "1" / PLAN).exists()


def test_a_shared_folder_needs_no_store(tmp_path: Path) -> None:
    study = start(tmp_path)
    run(study, Exchange(study, tmp_path / "a"), 2)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0", "1"]
