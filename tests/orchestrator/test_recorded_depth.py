"""A study goes on under a budget in time although it was begun without one, and the other way
round.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.__main__ import main
from orchestrator.results.rows import TrialRow, read_csv

TINY = [
    "made_up={}",
    "+experiment=digits_small",
    "model.width=4",
    "phases.train.epochs=1",
    "phases.finetune.round_steps=2",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=1",
    "phases.confirm.baselines=[]",
    "search.chain.targets=2",
    "threads=1",
    "tracking=none",
    "study.n_trials=2",
]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("n_trials=2", "budget=8s", marks=pytest.mark.slow),
        pytest.param("budget=8s", "n_trials=30", marks=[pytest.mark.slow, pytest.mark.family]),
    ],
)
def test_another_kind_of_budget_is_no_other_search(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: str,
    second: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, f"study.{first}"]) == 0, capsys.readouterr().err
    name = next(Path("runs").iterdir()).name
    before = read_csv(f"runs/{name}/trials.csv", TrialRow)
    assert main([*TINY, f"study.{second}"]) == 0, capsys.readouterr().err
    after = read_csv(f"runs/{name}/trials.csv", TrialRow)
    assert [row.number for row in after[: len(before)]] == [row.number for row in before]
    if first.startswith("n_trials"):  # a key that the user gives is still held against the record
        assert main([*TINY, f"study.{second}", "method.depth=true", f"study.name={name}"]) == 2
        assert "method.depth was False, now True" in capsys.readouterr().err
