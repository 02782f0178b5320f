"""The user's own plans, through the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.__main__ import main
from orchestrator.results.rows import TrialRow, read_csv
from orchestrator.search.plans.finished import read_plan
from tests.orchestrator.test_warm_start_job import SMALL

OURS = [*SMALL, "study.name=ours", "stopping=never"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: object) -> str:
    Path(name).write_text(json.dumps(content))
    return name


@pytest.mark.slow
@pytest.mark.family
def test_they_are_tried_behind_the_chain_and_inherit_like_others() -> None:
    write("wide.json", {"conv1": 0.25})
    write("mine.json", {"conv1": 0.5, "stages.1.0.conv1": 0.5, "stages.2.0.conv1": 0.75})
    command = [*OURS, "search.plans=[wide.json,mine.json]"]
    assert main([*command, "study.n_trials=5"]) == 0
    rows = read_csv("runs/ours/trials.csv", TrialRow)
    assert [row.kind for row in rows] == [*["chain"] * 3, "user", "user"]
    assert {row.state for row in rows} == {"completed"}
    units = read_plan(Path("runs/ours/trials/4"))["plan"]["kept"]
    assert (units["conv1"], units["stages.1.0.conv1"], units["stages.2.0.conv1"]) == (4, 8, 8)
    assert (
        main([*command, "study.n_trials=7"]) == 0
    )  # samplers go on beside them, and they are not tried again
    rows = read_csv("runs/ours/trials.csv", TrialRow)
    assert [row.kind for row in rows[5:]] == ["search", "search"]
    assert Path("runs/ours/trials/4/plan.json").exists()
    assert (
        main([*command, "study.name=paced", "study.budget=3epochs", "search.chain.most_epochs=1"])
        == 0
    )


def test_single_weights_and_other_rules() -> None:
    write("weights.json", {"fc.weight": 0.9, "stages.2.0.conv1.weight": 0.5})
    assert main([*OURS, "method=weight_l1", "study.n_trials=4", "search.plans=[weights.json]"]) == 0
    density = read_plan(Path("runs/ours/trials/3"))["density"]
    assert density["fc.weight"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv9": 0.5},
            "plan.json names unknown groups ['conv9']; nearest: conv1; the model has ['conv1', ",
        ),
        ({"conv1": "half"}, "plan.json has 'half' for 'conv1'"),
        ({"conv1": -0.5}, "plan.json has -0.5 for 'conv1'"),
        ([0.5], "plan.json holds [0.5]"),
        ({}, "plan.json holds {}"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_plan_is_told_before_training(
    content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        write("plan.json", content)
    assert main([*OURS, "search.plans=[plan.json]"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "epoch" not in said
    assert "Traceback" not in said


def test_a_method_of_two_stages_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write("plan.json", {"conv1": 0.5})
    assert main([*OURS, "method=hybrid", "search.plans=[plan.json]"]) == 2
    assert "needs two" in capsys.readouterr().err
