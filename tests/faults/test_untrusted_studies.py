"""Studies whose files are damaged: trials are made anew, what cannot be is named without its
passwords.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.__main__ import main
from orchestrator.load import load_pruned
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv
from orchestrator.search.studies.study import open_study
from tests.faults.harm import STUDY as TRAINED
from tests.faults.harm import change, flip
from tests.search.test_study import settings as made_up

STUDY = ["made_up={}", *TRAINED]


def test_a_warm_start_from_outside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, "search.warm_start=../../etc"]) == 2
    assert (
        "search.warm_start must name another study with finished plans" in capsys.readouterr().err
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small study was run, not to be touched."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(STUDY) == 0
    return folder


@pytest.fixture
def again(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder; the study's own folder in it."""
    shutil.copytree(study, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "digits_small"


@pytest.mark.slow
def test_a_damaged_plan_is_set_aside_and_its_trial_made_anew(
    again: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_csv(again / "trials.csv", TrialRow)
    flip(again / "trials" / "1" / "weights.safetensors")
    change(again / "trials" / "2" / "plan.json", lambda d: d.update(trial="../1"))
    capsys.readouterr()
    assert main([*STUDY, "study.n_trials=4"]) == 0
    said = capsys.readouterr().err
    assert "1/weights.safetensors was changed or damaged" in said
    assert "it is made anew as trial 3" in said
    assert "2/plan.json must be a plan that this program wrote: trial: " in said
    after = read_csv(again / "trials.csv", TrialRow)
    assert [row.state for row in after] == [
        "completed",
        "damaged",
        "damaged",
        "completed",
        "completed",
        "completed",
    ]
    assert [after[3].costs["flops"], after[4].costs["flops"]] == [
        before[1].costs["flops"],
        before[2].costs["flops"],
    ]
    assert [row.kind for row in after[3:5]] == [row.kind for row in before[1:]]
    assert not {row.parent for row in after[3:]} & {1, 2}
    assert json.loads((again / "summary.json").read_text())["trials"] == 4
    assert sorted(path.name for path in (again / "trials").iterdir()) == [
        "0",
        "3",
        "4",
        "5",
        "damaged-1",
        "damaged-2",
    ]
    assert not {1, 2} & {row.trial for row in read_csv(again / "front.csv", ConfirmedRow)}
    monkeypatch.setattr("orchestrator.jobs.search.prepare", None)
    assert main([*STUDY, "study.n_trials=4"]) == 0  # complete: nothing is done


@pytest.mark.slow
def test_a_damaged_plan_of_another_study_is_left_out(
    again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(again / "trials" / "1" / "weights.safetensors")
    second = ["study.name=second", "search.warm_start=digits_small"]
    assert main([*STUDY, *second, "study.n_trials=2"]) == 0
    assert "it came from another study and is left out" in capsys.readouterr().err
    rows = read_csv(again.parent / "second" / "trials.csv", TrialRow)
    assert {row.kind for row in rows[:3]} == {"warm"}
    assert [row.state for row in rows].count("damaged") == 1
    (again / "trials" / "1" / "plan.json").write_text("{")
    assert main([*STUDY, "study.name=third", "search.warm_start=digits_small"]) == 2
    assert "trials/1/plan.json must be a file of JSON" in capsys.readouterr().err


def test_a_journal_has_no_passwords(tmp_path: Path) -> None:
    data = {"_target_": "builtins.dict", "url": "https://me:hunter2@host/data", "token": "hunter2"}
    found = made_up(tmp_path, data=data)
    open_study(found, ["maximize", "minimize"])
    journal = (found.study.folder / "study.journal").read_text()
    assert "me:***@host" in journal
    assert "hunter2" not in journal


@pytest.mark.slow
@pytest.mark.parametrize("name", ["summary.json", "front.csv", "trials.csv", "baselines.csv"])
def test_damaged_tables_are_written_anew(
    name: str, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (again / name).write_bytes(b"\xff\x00,{")
    assert main(STUDY) == 0
    assert "is damaged and is made anew" in capsys.readouterr().err
    assert main(STUDY) == 0
    assert "is damaged" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_deleted_model_is_exported_anew(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = sorted((again / "models").iterdir())
    shutil.rmtree(models[0])
    assert main(STUDY) == 0
    assert sorted((again / "models").iterdir()) == models
    load_pruned(models[0])


@pytest.mark.parametrize("content", [b"noise\n" * 20, b'{"op_code": 0}\n', b"[1]\n", b"\xff\xfe\n"])
def test_a_damaged_journal_is_named(
    content: bytes, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = again / "study.journal"
    journal.write_bytes(content + journal.read_bytes())
    assert main([*STUDY, "study.n_trials=4"]) == 2
    said = capsys.readouterr().err
    assert "study.journal cannot be read" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_journal_cut_in_its_last_line_goes_on(
    again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.search.studies.leases._started", lambda pid: "later"
    )  # than the run that was killed
    journal = again / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert main([*STUDY, "study.n_trials=4"]) == 0
    assert main([*STUDY, "study.n_trials=5"]) == 0
    assert len(read_csv(again / "trials.csv", TrialRow)) == 5


def test_a_database_that_is_none_is_named_without_its_password(
    again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (again / "s.db").write_bytes(b"no database" * 100)
    for url in (
        f"sqlite:///{again / 's.db'}",
        "postgresql://me:hunter2@nowhere.invalid/db",
        "what://is:hunter2@this",
    ):
        assert main([*STUDY, f"study.storage={url}", "study.name=other"]) == 2
        said = capsys.readouterr().err
        assert (
            "study.storage must be a database that answers" in said
            or "study.storage needs a driver" in said
        )
        assert "hunter2" not in said
        assert "Traceback" not in said
