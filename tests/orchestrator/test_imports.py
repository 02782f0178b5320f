"""What is imported before an answer: torch and Lightning take seconds, which a message need not
wait for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.__main__ import main
from orchestrator.jobs.outputs import Outputs, key
from orchestrator.results.rows import ConfirmedRow
from orchestrator.settings import Settings

HEAVY = (
    "torchmetrics",
    "pytorch_lightning",
    "torchvision",
    "mlflow",
    "sklearn",
    "matplotlib",
    "optuna",
    "scipy",
)
SCRIPT = """
import contextlib, io, json, os, sys
from orchestrator.__main__ import main

answers = []
for folder, words, heavy in {asked!r}:
    os.chdir(folder)
    shown = contextlib.redirect_stdout(io.StringIO())
    with contextlib.redirect_stderr(io.StringIO()) as said, shown:
        code = main(words)
    answers.append((code, [name for name in heavy if name in sys.modules], said.getvalue()))
print(json.dumps(answers))
"""
MINE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=3):
        super().__init__()

class Data:
    def __init__(self, folder):
        raise AssertionError("not before all is checked")
"""
SMALL = ["+experiment=digits_small", "tracking=none"]


Asked = tuple[str, list[str], tuple[str, ...]]
"""Where a command line is given, its words, and what it must not import."""


def answers(folder: Path, *asked: Asked) -> list[tuple[int, list[str], str]]:
    """Exit code, what was imported although it must not be, and what was said; in turn, in one
    process.
    """
    command = [sys.executable, "-c", SCRIPT.format(asked=list(asked))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return [(code, heavy, said) for code, heavy, said in json.loads(done.stdout)]


MISTAKES = [
    (["model._target_=nowhere.Net"], "no module holds 'nowhere.Net'", (*HEAVY, "torch")),
    (["data._target_=mine.Date"], "has no 'Date'; nearest: Data", HEAVY),
    (["model._target_=mine.Net", "+model.hiden=4"], "unexpected keyword argument 'hiden'", HEAVY),
    (["data._target_=mine.Data"], "missing a required argument: 'folder'", HEAVY),
    (["task._target_=mine.Net"], "unexpected keyword argument 'model'", HEAVY),
    (["method.criterion._target_=mine.Score"], "mine has no 'Score'", HEAVY),
    (["job=inspect", "model._target_=mine.Net", "+model.hiden=4"], "argument 'hiden'", HEAVY),
]
"""Words, what is said of them, and what has not been imported by then; the first imports least."""


@pytest.mark.slow
def test_a_mistake_in_ones_own_class_is_told_before_anything_large_is_imported(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    place = str(tmp_path)
    asked: list[Asked] = [(place, [*SMALL, *words], heavy) for words, _, heavy in MISTAKES]
    for (words, message, _), (code, heavy, said) in zip(
        MISTAKES, answers(tmp_path, *asked), strict=True
    ):
        assert (code, heavy) == (2, []), words
        assert message in said


class Expensive:
    """Data that must not be read yet."""

    def setup(self, stage: str | None = None) -> None:
        raise AssertionError("read before all was checked")


@pytest.mark.parametrize("job", ["search", "inspect"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("space.shapes=[cyclic]", "come back"),
        ("+sampler.unknown=1", "unknown"),
        ("phases.finetune.optimizer.lr=-1", "Invalid learning rate"),
        ("objectives.quality=acuracy", "nearest: accuracy"),
        ("device=quantum", "device must be auto"),
        ("search.plans=[nowhere.json]", "nowhere.json"),
        ("method=nm_2_4", "patterns"),
    ],
)
def test_what_takes_no_data_is_checked_before_data_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: str,
    wrong: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    space = ["space=allocation"] if wrong == "method=nm_2_4" else []
    assert main([*SMALL, *space, f"data._target_={__name__}.Expensive", f"job={job}", wrong]) == 2
    assert said in capsys.readouterr().err


def finished(folder: Path, blocks: bool = False) -> Settings:
    """A study that is complete, as far as its files say."""
    settings = orchestrator.load_settings(
        {"experiment": "digits_small", "tracking": "none", "study": {"out": str(folder / "runs")}}
    )
    values = {"flops": 10.0, "params": 10.0, "latency_ms": 1.0}
    costs = {"costs": values, "ratios": {"flops": 0.5, "params": 0.5}}
    row = {"test_mean": 0.9, "test_std": 0.01, "seeds": 2, **costs}
    front, dense = ConfirmedRow("front", 3, **row), ConfirmedRow("dense", None, **row)
    summary = {
        "key": key(settings.with_depth(blocks)),
        "trials": 12,
        "states": {"completed": 12},
        "hypervolume": 1.0,
        "seconds": 60.0,
        "phases": {"search": 50.0},
        "orchestration_share": 0.1,
        "tracking_share": 0.0,
        "reference": {"accuracy": 0.5},
    }
    (settings.study.folder / "models" / "3").mkdir(parents=True)
    (settings.study.folder / "models" / "3" / "plan.json").write_text("{}")
    Outputs(settings.study.folder, settings.objectives, [], [front], [], dense, summary).write(
        settings
    )
    return settings


def test_a_study_that_is_complete_is_shown_without_torch(tmp_path: Path) -> None:
    """Also one whose blocks went too: under a budget in time they do by default, a key that the
    user never gave.
    """
    places = [tmp_path / "plain", tmp_path / "blocks"]
    for place, blocks in zip(places, (False, True), strict=True):
        settings = finished(place, blocks)
    assert key(settings.with_depth(True)) != key(settings)
    asked: list[Asked] = [(str(place), SMALL, (*HEAVY, "torch")) for place in places]
    for code, heavy, said in answers(tmp_path, *asked):
        assert (code, heavy) == (0, []), said
