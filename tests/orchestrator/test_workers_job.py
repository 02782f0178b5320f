"""`workers=N` and `job=work`: who runs trials, who is refused, and what is said of workers that
end.
"""

from __future__ import annotations

import io
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.trial import TrialState

from lightning_modules.errors import UserError
from orchestrator.__main__ import main
from orchestrator.progress import Progress
from orchestrator.search.studies.leases import LEADER, LEASE, process_identity
from orchestrator.search.studies.queue import put_back
from orchestrator.search.studies.storage import Journal
from orchestrator.workers import pool as workers
from orchestrator.workers.pool import DEATHS, Workers
from orchestrator.workers.process import phase_file, run_worker
from tests.faults.tiny import TINY, TRIALS, check_whole, finished, run, study_in, wait_for
from tests.orchestrator import fake_workers
from tests.search.problems import settings_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which two workers have run the tiny study, and what was said."""
    folder = tmp_path_factory.mktemp("home")
    return folder, finished(folder, "workers=2")


@pytest.mark.slow
@pytest.mark.family
def test_two_workers_do_what_one_process_does(home: tuple[Path, str]) -> None:
    folder, said = home
    check_whole(folder)
    told = [line for line in said.splitlines() if line.startswith("trial ")]
    assert sorted(int(line.split()[1]) for line in told) == list(range(TRIALS))
    logs = [folder / "runs" / "tiny" / "workers" / f"{place}.log" for place in (0, 1)]
    assert "as they come" in "".join(path.read_text() for path in logs)
    assert "Traceback" not in "".join(path.read_text() for path in logs)


@pytest.mark.slow
@pytest.mark.family
def test_two_workers_share_the_confirmation(home: tuple[Path, str]) -> None:
    folder, said = home
    study = folder / "runs" / "tiny"
    models = [path.stem for path in (study / "confirm").glob("*.json")]
    marks = [path.stem for path in (study / "confirm" / "shared").glob("*.json")]
    trials = [name for name in models if name.startswith("trial-")]
    assert sorted(marks) == ["baseline-uniform", "dense", *sorted(trials)]
    # the process that searches trained none of them itself
    assert "shared by the processes of the study" in said
    assert ", seed" not in said


@pytest.mark.slow
def test_there_is_nothing_to_help_with_in_a_study_that_is_over(
    home: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home[0])
    assert main([*TINY, "job=work"]) == 0
    assert "study 'tiny' is complete: nothing to help with" in capsys.readouterr().err


@pytest.mark.slow
def test_help_with_another_search_is_refused_with_the_difference(
    home: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home[0])
    assert main([*TINY, "job=work", "method=l1"]) == 2
    assert "method.name was 'l2', now 'l1'" in capsys.readouterr().err


def test_help_with_a_study_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "job=work"]) == 2
    assert "'tiny' is not in runs/tiny: start it with job=search" in capsys.readouterr().err


def test_a_budget_in_time_is_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "workers=2", "study.budget=1min"]) == 2
    assert (
        "study.budget=1min with workers=2: take workers=1, or a number of trials"
        in capsys.readouterr().err
    )
    assert main([*TINY, "job=work", "study.budget=1min"]) == 2
    assert "study.budget=1min paces one process" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.family
def test_a_second_search_is_refused_and_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with run(
        tmp_path, "made_up=null", "phases.train.epochs=100000"
    ) as first:  # still at its dense model: there are no trials yet
        assert first.says("dense"), first.text
        with study_in(tmp_path) as study:
            before = wait_for(lambda: study.user_attrs.get(LEADER) and study.user_attrs, "a leader")
        assert main([*TINY, "made_up=null", "method=l1"]) == 2
        refused = (
            f"is being searched by process {first.process.pid} on {process_identity()['host']}"
        )
        assert refused in capsys.readouterr().err
        with study_in(tmp_path) as study:
            after = study.user_attrs
        assert after["identity"] == before["identity"]
        assert after[LEADER]["owner"] == before[LEADER]["owner"]
        assert first.process.poll() is None


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return optuna.create_study(
        study_name="s",
        storage=JournalStorage(Journal(tmp_path / "journal")),
        directions=["minimize", "minimize"],
    )


def watched(tmp_path: Path, study: optuna.Study, leads: bool = True) -> Workers:
    return Workers(settings_of(tmp_path, "workers=2"), study, leads)


def look(team: Workers, until: Callable[[], Any]) -> None:
    progress = Progress()
    end = time.monotonic() + 60.0
    while not until():
        team.look(progress)
        assert time.monotonic() < end
        time.sleep(0.01)


def never() -> bool:
    return False


@pytest.mark.slow
def test_a_worker_that_cannot_work_stops_the_run_with_its_message(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_worker", fake_workers.refuses)
    with (
        pytest.raises(UserError, match=r"^data.folder must be there; '/nowhere' is not$"),
        watched(tmp_path, study) as team,
    ):
        look(team, never)
    assert not team.busy()


@pytest.mark.slow
def test_workers_that_all_die_end_the_run(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_worker", fake_workers.dies)
    with (
        pytest.raises(UserError, match="10 in a row ended without, the last with signal 9"),
        watched(tmp_path, study) as team,
    ):
        look(team, never)
    assert not team.busy()


@pytest.mark.parametrize("put_back_by_another", [False, True])
def test_a_trial_over_which_workers_keep_dying_is_recorded_as_failed(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch, put_back_by_another: bool
) -> None:
    monkeypatch.setattr(workers, "run_worker", fake_workers.stays)
    trial = study.ask()
    storage = study._storage

    def over() -> bool:
        return storage.get_trial(trial._trial_id).state.is_finished()

    with watched(tmp_path, study) as team:
        for _ in range(DEATHS):
            assert not over()
            process = team._processes[0]
            lease = {**process_identity(), "pid": process.pid, "owner": "them", "beat": 1}
            storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            storage.set_trial_user_attr(trial._trial_id, LEASE, lease)
            team.look(Progress())
            process.kill()
            process.join()
            if put_back_by_another:
                put_back(study, trial.number, "them")
            look(team, lambda process=process: team._processes[0] is not process)
        assert over()
    assert (
        storage.get_trial(trial._trial_id).user_attrs["reason"]
        == "5 workers died over it, the last with signal 9"
    )


def test_a_worker_of_another_machine_with_the_same_number_is_not_meant(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_worker", fake_workers.stays)
    trial = study.ask()
    with watched(tmp_path, study) as team:
        lease = {
            **process_identity(),
            "place": "far",
            "pid": team._processes[0].pid,
            "owner": "them",
            "beat": 1,
        }
        study._storage.set_trial_user_attr(trial._trial_id, LEASE, lease)
        team.look(Progress())
    assert team._trial == {}


def test_each_worker_is_shown_with_its_trial_its_round_and_its_phase(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_worker", fake_workers.stays)
    stream = io.StringIO()
    progress = Progress(stream, terminal=False)
    with watched(tmp_path, study) as team:
        team.look(progress)
        assert progress.shown_workers == ("worker 0: starts", "worker 1: starts")
        trial = study.ask()
        lease = {**process_identity(), "pid": team._processes[0].pid, "owner": "them", "beat": 1}
        study._storage.set_trial_user_attr(trial._trial_id, LEASE, lease)
        trial.set_user_attr("rungs", [[1, 0.5, {}]])
        phase_file(team._log(0)).write_text("finetune")
        phase_file(team._log(1)).write_text("")
        team.look(progress)
    assert progress.shown_workers == (
        "worker 0: trial 0, round 2, finetune",
        "worker 1: waits for a trial",
    )
    assert stream.getvalue() == "  worker 0: starts, worker 1: starts\n"


@pytest.mark.slow
def test_a_worker_that_ends_early_is_replaced_where_the_search_is_led(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_worker", fake_workers.leaves)
    with watched(tmp_path, study, leads=True) as team:
        first = dict(team._processes)
        look(
            team,
            lambda: all(team._processes[place] is not process for place, process in first.items()),
        )
    with watched(tmp_path, study, leads=False) as team:
        first = dict(team._processes)
        look(team, lambda: not team.busy())
        assert team._processes == first


def test_no_worker_outlives_a_run_that_is_stopped_while_it_begins_them(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_worker", fake_workers.stays)
    team = watched(tmp_path, study)
    begin = team._begin

    def stopped(place: int) -> None:
        if place == 1:
            raise KeyboardInterrupt
        begin(place)

    monkeypatch.setattr(team, "_begin", stopped)
    with pytest.raises(KeyboardInterrupt), team:
        pass
    assert not team.busy()
    assert len(team._processes) == 1


def test_what_a_worker_begins_with_is_there_before_what_takes_seconds(tmp_path: Path) -> None:
    (tmp_path / "begun").write_bytes(pickle.dumps((run_worker, settings_of(tmp_path))))
    code = """
import pickle, sys
pickle.load(open('begun', 'rb'))
print([name for name in ('torch', 'optuna', 'pytorch_lightning', 'mlflow') if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_worker_without_a_parent_that_does_not_hear_the_first_signal_ends_with_the_second() -> (
    None
):
    code = """
import threading, time
from orchestrator.workers import process as worker
from orchestrator.stopped import Stopped, stoppable

worker.GRACE_SECONDS = 0.1
with stoppable():
    try:
        threading.Thread(target=worker._end_with, args=(-1,), daemon=True).start()
        time.sleep(60)
    except Stopped:
        print('heard', flush=True)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("heard\n", -signal.SIGTERM)
