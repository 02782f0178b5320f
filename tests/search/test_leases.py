"""Leases: who is taken for dead, when, and what happens to whoever was wrongly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from lightning_modules.errors import ConfigError, StorageError
from orchestrator.search.studies import leases as module
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import (
    BEATS,
    LEADER,
    LEASE,
    UNSIGNED_SECONDS,
    LeaseLostError,
    Leases,
    process_identity,
)
from orchestrator.search.studies.loop import run_claimed
from orchestrator.search.studies.queue import (
    claim,
    put_back,
    reclaim_abandoned,
    reclaim_interrupted,
    running,
)
from orchestrator.search.studies.storage import Journal
from orchestrator.search.studies.study import Trials
from orchestrator.search.studies.trial import FrozenTrial
from tests.search import test_study

PATIENCE = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return opened(tmp_path)


def opened(tmp_path: Path) -> optuna.Study:
    """As another process sees it."""
    storage = optuna.storages.JournalStorage(Journal(tmp_path / "journal"))
    return optuna.create_study(
        storage=storage, study_name="s", directions=["maximize", "minimize"], load_if_exists=True
    )


def claimed(study: optuna.Study) -> FrozenTrial:
    found = claim(study, 99)
    assert found is not None
    return found


def running_trial(study: optuna.Study, lease: dict[str, Any] | None) -> FrozenTrial:
    study.enqueue_trial({})
    taken = claimed(study)
    study._storage.set_trial_user_attr(taken._trial_id, LEASE, lease)
    return study.get_trials(deepcopy=False)[taken.number]


def elsewhere(beat: int = 1, **changes: Any) -> dict[str, Any]:
    """The lease of a process on another machine."""
    return {
        **process_identity(),
        "host": "far",
        "place": "far 1",
        "owner": "them",
        "beat": beat,
        **changes,
    }


def beat(study: optuna.Study, trial: FrozenTrial, count: int, **changes: Any) -> FrozenTrial:
    study._storage.set_trial_user_attr(trial._trial_id, LEASE, elsewhere(count, **changes))
    return study.get_trials(deepcopy=False)[trial.number]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_lease_says_nothing_of_the_time() -> None:
    assert set(elsewhere()) == {"host", "place", "pid", "started", "owner", "beat"}


def test_the_trial_of_a_dead_process_on_this_machine_is_abandoned_at_once(
    study: optuna.Study, child: subprocess.Popen[bytes]
) -> None:
    lease = {
        **elsewhere(),
        **process_identity(),
        "pid": child.pid,
        "started": module._started(child.pid),
    }
    trial, judge = running_trial(study, lease), Leases(study, PATIENCE)
    assert not judge.abandoned(trial)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert judge.abandoned(trial)  # also while its parent has not looked
    child.wait()
    assert judge.abandoned(trial)
    assert reclaim_interrupted(study, judge) == 1


def test_a_later_process_with_the_number_of_a_dead_one_is_not_taken_for_it(
    study: optuna.Study,
) -> None:
    trial = running_trial(study, {**elsewhere(), **process_identity(), "started": "1"})
    assert Leases(study, PATIENCE).abandoned(trial)


@pytest.mark.parametrize("place", [process_identity()["place"], "far 1"])
def test_a_living_process_is_left_alone_for_as_long_as_it_beats(
    study: optuna.Study, place: str
) -> None:
    clock = Clock()
    judge, trial = Leases(study, PATIENCE, clock), running_trial(study, elsewhere(0, place=place))
    for count in range(1, 50):
        for _ in range(3):
            assert not judge.abandoned(trial)
            clock.now += PATIENCE / 4
        trial = beat(study, trial, count, place=place)
    assert reclaim_abandoned(study, judge) == 0


def test_a_silent_process_elsewhere_is_taken_for_dead_after_the_patience_of_the_judges_own_clock(
    study: optuna.Study,
) -> None:
    clock = Clock()
    judge, trial = Leases(study, PATIENCE, clock), running_trial(study, elsewhere())
    begin, waited = clock.now, 0.0
    while not judge.abandoned(trial):
        waited = clock.now - begin
        clock.now += 1.0
    assert PATIENCE <= waited <= PATIENCE + 1.0


def test_what_a_judge_could_not_see_does_not_count_as_silence(study: optuna.Study) -> None:
    clock = Clock()
    judge, trial = Leases(study, PATIENCE, clock), running_trial(study, elsewhere())
    assert not judge.abandoned(trial)
    clock.now += 100 * PATIENCE  # its database was away, so nobody could beat
    assert not judge.abandoned(trial)
    assert not judge.led()


def test_a_running_trial_that_nobody_signed_is_taken_over_after_a_moment(
    study: optuna.Study,
) -> None:
    clock = Clock()
    judge, sleeps = Leases(study, PATIENCE, clock), list[float]()
    running_trial(study, None)

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        clock.now += seconds

    assert reclaim_interrupted(study, judge, sleep) == 1
    assert UNSIGNED_SECONDS <= sum(sleeps) <= UNSIGNED_SECONDS + 0.5
    assert running(study) == []


def test_what_two_judges_find_abandoned_is_put_back_once(study: optuna.Study) -> None:
    trial = running_trial(study, {**elsewhere(), **process_identity(), "started": "1"})
    first, second = Leases(study, PATIENCE), Leases(study, PATIENCE)
    assert first.abandoned(trial)
    assert second.abandoned(trial)
    put_back(study, trial.number, "them")
    again = claimed(study)
    with first.trial(again.number, again._trial_id):
        put_back(study, trial.number, "them")
        first.require(trial.number)


def test_of_two_that_claim_the_lead_at_once_one_gets_it(tmp_path: Path) -> None:
    for turn in range(5):
        both, over, found = threading.Barrier(2), threading.Barrier(2), list[str]()
        (tmp_path / str(turn)).mkdir()
        opened(tmp_path / str(turn))

        def claims(
            turn: int = turn, both: Any = both, over: Any = over, found: list[str] = found
        ) -> None:
            study = opened(tmp_path / str(turn))
            mine = Leases(study, PATIENCE)
            both.wait()
            try:
                with mine.leading():
                    found.append("led")
                    over.wait(10)
                    mine.require_lead()
            except ConfigError as error:
                found.append(str(error))
                over.wait(10)

        threads = [threading.Thread(target=claims) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(text == "led" for text in found) == [False, True]
        assert opened(tmp_path / str(turn)).user_attrs[LEADER] is None


def test_a_second_leader_on_this_machine_is_refused_at_once_with_process_and_host(
    study: optuna.Study,
) -> None:
    name = f"process {os.getpid()} on {process_identity()['host']}"
    second = Leases(study, PATIENCE)
    with (
        Leases(study, PATIENCE).leading(),
        pytest.raises(ConfigError, match=f"is being searched by {name};.*job=work"),
        second.leading(),
    ):
        pass
    with second.leading():
        second.require_lead()


def test_a_leader_elsewhere_is_refused_as_soon_as_it_beats(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.set_user_attr(LEADER, elsewhere())
    monkeypatch.setattr(
        module.time, "sleep", lambda seconds: study.set_user_attr(LEADER, elsewhere(2))
    )
    said: list[str] = []
    with (
        pytest.raises(ConfigError, match=r"process .* on far"),
        Leases(study, PATIENCE).leading(said.append),
    ):
        pass
    assert [line for line in said if "on far; is it still?" in line] == said
    assert len(said) == 1


def test_a_leader_that_was_followed_notices(tmp_path: Path) -> None:
    clock = Clock()
    first, second = Leases(opened(tmp_path), PATIENCE), Leases(opened(tmp_path), PATIENCE, clock)
    with first.leading():
        first.require_lead()
        first.study.set_user_attr(LEADER, elsewhere(owner=first.owner))
        for _ in range(4):
            second._silent(LEADER, second.study.user_attrs[LEADER], PATIENCE)
            clock.now += PATIENCE / 2
        with second.leading():
            with pytest.raises(ConfigError, match="is being searched by"):
                first.require_lead()
            second.require_lead()
    assert second.study.user_attrs[LEADER] is None


def waits(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within 10 s")


def test_signs_of_life_end_with_what_they_are_for(study: optuna.Study) -> None:
    mine = Leases(study, 0.02 * BEATS)
    trial = running_trial(study, None)
    with mine.leading():
        with mine.trial(trial.number, trial._trial_id):
            before = mine._beat
            waits(lambda: mine._beat > before + 4)
        put_back(study, trial.number, mine.owner)
        before = mine._beat
        waits(lambda: mine._beat > before + 4)
        assert study.get_trials()[trial.number].user_attrs[LEASE] is None
    threading.Event().wait(0.1)
    assert study.user_attrs[LEADER] is None
    assert not mine._held


def test_a_trial_that_was_taken_over_is_not_taken_back(study: optuna.Study) -> None:
    mine = Leases(study, 0.02 * BEATS)
    trial = running_trial(study, None)
    with mine.leading(), mine.trial(trial.number, trial._trial_id):
        beat(study, trial, 1)
        before = mine._beat
        waits(lambda: mine._beat > before + 4)  # the lead's
        with pytest.raises(
            LeaseLostError, match=f"trial {trial.number} was taken over by process .* on far"
        ):
            mine.require(trial.number)
    assert study.get_trials()[trial.number].user_attrs[LEASE] == elsewhere(1)


def test_a_claim_that_somebody_else_has_signed_meanwhile_is_lost(study: optuna.Study) -> None:
    trial = running_trial(study, elsewhere())
    mine = Leases(study, PATIENCE)
    with pytest.raises(LeaseLostError), mine.trial(trial.number, trial._trial_id):
        pass


def test_a_sign_of_life_that_fails_is_told_by_the_next_look(study: optuna.Study) -> None:
    mine = Leases(study, 0.02 * BEATS)

    def away() -> None:
        raise StorageError("the database is away")

    with mine._holding("trial 0", away):
        waits(lambda: mine._error)
        for look in (lambda: mine.require(0), mine.require_lead):
            with pytest.raises(StorageError, match="is away"):
                look()


@pytest.mark.parametrize("moment", ["report", "end", "tell"])
@pytest.mark.parametrize("to", ["waiting", "them", "told"])
def test_a_lost_lease_leads_to_neither_a_tell_nor_a_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, to: str
) -> None:
    study = test_study.start(tmp_path)
    mine = Leases(study, PATIENCE)

    def lose(number: int) -> None:
        trial = study.get_trials(deepcopy=False)[number]
        put_back(study, number, mine.owner)
        if to != "waiting":
            beat(study, claimed(study), 1)
        if to == "told":
            study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0, 2.0])

    def evaluate(proposal: Any, number: int, report: Any) -> Any:
        if moment == "report":
            lose(number)
        measured = test_study.pretend(proposal, number, report)
        if moment == "end":
            lose(number)
        return measured

    if moment == "tell":
        judge = test_study.Rules.__module__ + "._judge"
        monkeypatch.setattr(judge, lambda trial, *_: (lose(trial.number), ("completed", ""))[1])
    taken = claimed(study)
    trials = Trials(
        study,
        test_study.SPACE,
        test_study.context(),
        evaluate,
        test_study.RULES,
        mine,
        Exchange(study, Path()),
    )
    assert not run_claimed(trials, taken)
    found = study.get_trials()[0]
    assert (
        found.state
        == {"waiting": TrialState.WAITING, "them": TrialState.RUNNING, "told": TrialState.COMPLETE}[
            to
        ]
    )
    assert found.values == ([1.0, 2.0] if to == "told" else None)
    assert (found.user_attrs[LEASE] or {}).get("owner") == (None if to == "waiting" else "them")
