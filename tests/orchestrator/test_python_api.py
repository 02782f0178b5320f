"""The door from Python: the same names whatever was imported before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator

STUB = """
import orchestrator
{before}
import orchestrator.jobs.checked as job
import orchestrator.jobs.study as study
from types import SimpleNamespace
job.search = print
study.open_study = lambda folder: ("searched", folder)
def settings(folder): return SimpleNamespace(study=SimpleNamespace(folder=folder))
assert orchestrator.search(settings(1)) == orchestrator.search(settings(1)) == ("searched", 1)
from orchestrator import search
assert search(settings(2)) == ("searched", 2)
import orchestrator.search.goals as goals
assert goals.goals_of
assert orchestrator.search(settings(3)) == ("searched", 3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    [
        "orchestrator.search",
        "orchestrator.load_pruned",
        "from orchestrator.search.goals import goals_of",
    ],
)
def test_search_can_be_called_in_whatever_order_things_are_imported(
    tmp_path: Path, before: str
) -> None:
    code = STUB.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(
        AttributeError,
        match="no attribute 'serach'; it has check, compare, export, inspect, load_exported",
    ):
        orchestrator.serach  # noqa: B018


@pytest.mark.slow
def test_waiting_threads_give_way_unless_the_user_says_otherwise() -> None:
    code = (
        "import os; from orchestrator.__main__ import main; main(['--version']); main(['--help'])"
    )
    told = "lambda: print('turns', os.environ.get('GOMP_SPINCOUNT'))"
    shown = f"import atexit, os; atexit.register({told}); {code}"
    for mine, expected in (
        ({}, "300"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
    ):
        kept = {name: value for name, value in os.environ.items() if "SPINCOUNT" not in name}
        done = subprocess.run(
            [sys.executable, "-c", shown],
            env={**kept, **mine},
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"turns {expected}" in done.stdout, done.stderr
