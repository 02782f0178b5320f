"""The queue of trials: several who ask at once, chains longer than asked for, runs killed while
they fill it.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from orchestrator.search.studies import loop
from orchestrator.search.studies.database import database
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import LONGEST_REST, help_search, run_trials, supply
from orchestrator.search.studies.queue import (
    WANTED,
    add_slot,
    claim,
    done,
    enqueue_chain,
    enqueue_plans,
    own_trials,
    parting,
    queued,
    slots_left,
    waiting,
)
from orchestrator.search.studies.storage import Journal
from orchestrator.search.studies.study import Trials
from orchestrator.search.studies.trial import ENQUEUED, KIND, WARM
from tests.search.test_study import RULES, SPACE, context, pretend

STORAGES = ["journal", "sqlite"]


def opened(folder: Path, kind: str) -> optuna.Study:
    """As another process sees it."""
    if kind == "journal":
        storage: Any = optuna.storages.JournalStorage(Journal(folder / "journal"))
    else:
        storage = database(f"sqlite:///{folder}/s.db", 60.0)
    return optuna.create_study(
        storage=storage, study_name="s", directions=["maximize", "minimize"], load_if_exists=True
    )


def claim_all(folder: Path, kind: str, begin: Any, claimed: Any) -> None:
    study = opened(folder, kind)
    begin.wait(60)
    while (trial := claim(study, 99)) is not None:
        claimed.put(trial.number)
    claimed.put(None)


def numbers(claimed: Any, claimers: int) -> Counter[int]:
    found: Counter[int] = Counter()
    while claimers:
        number = claimed.get(timeout=180)
        claimers -= number is None
        found.update([] if number is None else [number])
    return found


@pytest.mark.parametrize("kind", STORAGES)
def test_of_several_threads_that_claim_at_once_each_trial_goes_to_one(
    tmp_path: Path, kind: str
) -> None:
    study = opened(tmp_path, kind)
    for _ in range(12):
        add_slot(study)
    claimed, begin = SimpleQueue[int | None](), threading.Barrier(4)
    threads = [
        threading.Thread(target=claim_all, args=(tmp_path, kind, begin, claimed)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert numbers(claimed, 4) == Counter(range(12))
    for thread in threads:
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORAGES)
def test_of_several_processes_that_claim_at_once_each_trial_goes_to_one(
    tmp_path: Path, kind: str
) -> None:
    study = opened(tmp_path, kind)
    for _ in range(12):
        add_slot(study)
    context = multiprocessing.get_context("spawn")
    claimed, begin = context.Queue(), context.Barrier(2)
    processes = [
        context.Process(target=claim_all, args=(tmp_path, kind, begin, claimed)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    assert numbers(claimed, 2) == Counter(range(12))
    for process in processes:
        process.join()


@pytest.mark.parametrize("done", [False, True])
def test_a_claim_that_a_signal_cuts_short_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    study = opened(tmp_path, "journal")
    add_slot(study)
    write = study._storage.set_trial_state_values

    def signalled(trial_id: int, state: TrialState) -> None:
        if state == TrialState.RUNNING:
            if done:
                write(trial_id, state)
            raise KeyboardInterrupt
        write(trial_id, state)

    with monkeypatch.context() as patch:
        patch.setattr(study._storage, "set_trial_state_values", signalled)
        with pytest.raises(KeyboardInterrupt):
            claim(study, 1)
    assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING]


def test_a_chain_that_is_longer_than_the_trials_asked_for_is_cut(tmp_path: Path) -> None:
    study = opened(tmp_path, "journal")
    enqueue_chain(study, SPACE, [context()], [0.6, 0.3, 0.2, 0.1])
    run(study, 2)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 2 + ["WAITING"] * 2
    assert claim(study, 2) is None
    run(study, 3)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 3 + ["WAITING"]


def test_trials_that_were_taken_over_from_another_study_do_not_count(tmp_path: Path) -> None:
    study = opened(tmp_path, "journal")
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={KIND: WARM}))
    for _ in range(3):
        add_slot(study)
    assert [trial.number for trial in waiting(study, 2)] == [1, 2]
    assert (done(study), slots_left(study, SPACE.distributions(context()), 5)) == (0, 2)


def test_no_more_slots_than_combinations_are_left(tmp_path: Path) -> None:
    study = opened(tmp_path, "journal")
    space = {"a": CategoricalDistribution([1, 2, 3]), "b": CategoricalDistribution([True, False])}
    assert slots_left(study, space, 99) == 6
    assert slots_left(study, space, 4) == 4
    for params in ({"a": 1, "b": True}, {"a": 1, "b": True}, {"a": 2, "b": True}):
        study.add_trial(
            optuna.trial.create_trial(values=[0.0, 0.0], params=params, distributions=space)
        )
    assert slots_left(study, space, 99) == 4  # the same one twice is one
    add_slot(study)
    add_slot(study)
    assert slots_left(study, space, 99) == 2
    assert claim(study, 99) is not None
    assert slots_left(study, space, 99) == 2
    assert slots_left(study, space, 3) == 0


def test_those_who_ask_at_once_part_ways_after_the_first_trial() -> None:
    orders = [list(parting(range(100))) for _ in range(50)]
    for order in orders:
        assert sorted(order) == list(range(100))
        assert order[0] == 0
        assert order[1] in (1, 2)
        assert order[3] < 11
    assert len({tuple(order[:6]) for order in orders}) > 25
    assert list(parting([])) == []


@pytest.mark.parametrize("enqueued", [0, 1, 2, 3])
def test_a_chain_that_was_killed_while_it_was_enqueued_has_each_rung_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enqueued: int
) -> None:
    study, add = opened(tmp_path, "journal"), optuna.Study.enqueue_trial

    def enqueue() -> None:
        enqueue_chain(study, SPACE, [context()], [0.6, 0.3, 0.2])
        enqueue_plans(study, [{"g": 0.5}])

    def dies(self: optuna.Study, *arguments: Any, **named: Any) -> None:
        if len(self.get_trials()) == enqueued:
            raise KeyboardInterrupt
        add(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", dies)
        with pytest.raises(KeyboardInterrupt):
            enqueue()
    for _ in range(2):
        enqueue()
    (tmp_path / "whole").mkdir()
    whole = opened(tmp_path / "whole", "journal")
    enqueue_chain(whole, SPACE, [context()], [0.6, 0.3, 0.2])
    enqueue_plans(whole, [{"g": 0.5}])
    assert queued(study) == queued(whole)
    assert [trial.user_attrs[ENQUEUED] for trial in own_trials(study)] == queued(whole)


def trials_of(study: optuna.Study) -> Trials:
    return Trials(
        study, SPACE, context(), pretend, RULES, Leases(study, 60.0), Exchange(study, Path())
    )


def run(study: optuna.Study, n_trials: int) -> None:
    trials = trials_of(study)
    with trials.leases.leading():
        run_trials(trials, n_trials, lambda trial: None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORAGES)
def test_helpers_and_the_searching_process_share_a_study(tmp_path: Path, kind: str) -> None:
    study, over, told = opened(tmp_path, kind), threading.Event(), list[int]()
    enqueue_chain(study, SPACE, [context()], [0.6, 0.3, 0.1])
    study.set_user_attr(WANTED, 10)

    def helps() -> None:
        help_search(
            trials_of(opened(tmp_path, kind)), lambda: not over.is_set(), lambda trial: None
        )

    threads = [threading.Thread(target=helps) for _ in range(2)]

    def look() -> None:
        for thread in threads:
            if thread.ident is None:
                thread.start()

    trials = trials_of(study)
    with trials.leases.leading():
        supply(trials, 10, lambda trial: told.append(trial.number), look)
    over.set()
    for thread in threads:
        thread.join()
    assert sorted(told) == list(range(10))
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 10


def test_a_database_that_was_away_for_long_is_looked_at_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, rests = [0.0], list[float]()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    study = opened(tmp_path, "journal")
    add_slot(study)
    trials = trials_of(study)

    def look() -> None:
        now[0] += 300.0

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        study.tell(study.ask(), state=TrialState.FAIL)

    with trials.leases.leading():
        supply(trials, 1, lambda trial: None, look, sleep)
    assert rests == [LONGEST_REST]
