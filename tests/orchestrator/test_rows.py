"""Rows survive the way to disk and back."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_modules.errors import DataError
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv, write_csv

FLOPS = {"flops": 10**12, "params": 7}
TRIALS = [
    TrialRow(
        0,
        "completed",
        2,
        None,
        0.1 + 0.2,
        1.5,
        0.25,
        "chain",
        "",
        costs=FLOPS,
        ratios={"flops": 1 / 3},
    ),
    TrialRow(1, "rejected", 0, 0, None, 0.0, None, "sampler", 'over, "budget"\nby far'),
]
SMALL = {"costs": {**FLOPS, "size_mb": 0.5}, "ratios": {"flops": 1 / 3, "size_mb": 0.25}}
TRIALS.append(replace(TRIALS[0], axis="size_mb", metrics={"loss": 0.1 + 0.2, "f1": 1.0}, **SMALL))
FRONT = [
    ConfirmedRow("front", 3, 0.9, 0.0, 2, "models/3", costs={"flops": 10, "latency_ms": math.inf})
]
BASELINES = [ConfirmedRow("uniform", 3, 0.9, 1e-17, 2, costs={"flops": 10}, ratios={"flops": 0.5})]


@pytest.mark.parametrize(
    ("rows", "row_type"),
    [(TRIALS, TrialRow), (FRONT, ConfirmedRow), (BASELINES, ConfirmedRow), ([], TrialRow)],
)
def test_round_trip(tmp_path: Path, rows: list, row_type: type) -> None:
    write_csv(tmp_path / "rows.csv", rows, row_type)
    assert read_csv(tmp_path / "rows.csv", row_type) == rows


def test_the_cost_of_a_row_is_the_one_its_study_is_laid_out_along() -> None:
    assert (TRIALS[0].cost, TRIALS[0].cost_ratio) == (10**12, 1 / 3)
    assert (TRIALS[-1].cost, TRIALS[-1].cost_ratio) == (0.5, 0.25)
    assert (TRIALS[1].cost, TRIALS[1].cost_ratio) == (0, 0.0)
    slow = replace(
        FRONT[0], axis="latency_ms", costs={"latency_ms": 3.0}, ratios={"latency_ms": 0.75}
    )
    assert (slow.cost, slow.cost_ratio) == (3.0, 0.75)


def test_columns_are_those_of_the_output_contract(tmp_path: Path) -> None:
    expected = {
        TrialRow: (
            TRIALS,
            "number,state,rung,parent,quality,seconds",
            "flops,flops_ratio,params,size_mb,size_mb_ratio",
        ),
        ConfirmedRow: (
            BASELINES,
            "origin,trial,test_mean,test_std,seeds,path",
            "flops,flops_ratio",
        ),
    }
    for row_type, (rows, first, costs) in expected.items():
        write_csv(tmp_path / "rows.csv", rows, row_type)
        header = (tmp_path / "rows.csv").read_text().splitlines()[0]
        assert header.startswith(first)
        assert header.endswith(costs)


def test_a_foreign_file_and_a_broken_cell_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="must have the columns"):
        read_csv(path, ConfirmedRow)
    write_csv(path, FRONT, ConfirmedRow)
    text = path.read_text()
    path.write_text(text.replace("0.9", "good"))
    with pytest.raises(DataError, match=r"line 2: test_mean must be float; got 'good'"):
        read_csv(path, ConfirmedRow)
    path.write_text(text.replace(",models/3", ""))
    with pytest.raises(DataError, match=r"line 2 must have 14 cells; it has 13"):
        read_csv(path, ConfirmedRow)
