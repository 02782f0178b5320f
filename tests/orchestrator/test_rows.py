"""Rows survive the way to disk and back."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_modules.errors import DataError
from orchestrator.report.rows import BaselineRow, FrontRow, TrialRow, read_csv, write_csv

TRIALS = [
    TrialRow(0, "completed", 2, None, 0.1 + 0.2, 10**12, 1 / 3, 7, 1.0, 1.5, 0.25, "uniform", ""),
    TrialRow(1, "rejected", 0, 0, None, None, None, None, None, 0.0, None, "sampler", 'over, "budget"\nby far'),
]
TRIALS.append(replace(TRIALS[0], axis="size_mb", size_mb=0.5, dense_cost=2.0, metrics={"loss": 0.1 + 0.2, "f1": 1.0}))
FRONT = [FrontRow(3, 0.9, 0.0, 2, 10, 0.5, 4, 0.25, math.inf, "models/3")]
BASELINES = [BaselineRow("uniform", 3, 0.9, 1e-17, 2, 10, 0.5, 4, 0.25, 1.0, "")]


@pytest.mark.parametrize(
    ("rows", "row_type"), [(TRIALS, TrialRow), (FRONT, FrontRow), (BASELINES, BaselineRow), ([], TrialRow)]
)
def test_round_trip(tmp_path: Path, rows: list, row_type: type) -> None:
    write_csv(tmp_path / "rows.csv", rows, row_type)
    assert read_csv(tmp_path / "rows.csv", row_type) == rows


def test_the_cost_of_a_row_is_the_one_its_study_is_laid_out_along() -> None:
    assert (TRIALS[0].cost, TRIALS[0].cost_ratio) == (10**12, 1 / 3)
    assert (TRIALS[-1].cost, TRIALS[-1].cost_ratio) == (0.5, 0.25)
    assert (TRIALS[1].cost, TRIALS[1].cost_ratio) == (0, 0.0)
    slow = replace(FRONT[0], axis="latency_ms", latency_ms=3.0, dense_cost=4.0)
    assert (slow.cost, slow.cost_ratio) == (3.0, 0.75)


def test_columns_are_those_of_the_output_contract(tmp_path: Path) -> None:
    expected = {
        TrialRow: "number,state,rung,parent,quality,flops,flops_ratio,params,params_ratio,seconds",
        FrontRow: "trial,test_mean,test_std,seeds,flops,flops_ratio,params,params_ratio,latency_ms,path",
        BaselineRow: "baseline,trial,test_mean,test_std,seeds,flops,flops_ratio,params,params_ratio,latency_ms,path",
    }
    for row_type, columns in expected.items():
        write_csv(tmp_path / "rows.csv", [], row_type)
        assert (tmp_path / "rows.csv").read_text().startswith(columns)


def test_a_foreign_file_and_a_broken_cell_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="must have the columns"):
        read_csv(path, FrontRow)
    write_csv(path, FRONT, FrontRow)
    text = path.read_text()
    path.write_text(text.replace("0.9", "good"))
    with pytest.raises(DataError, match=r"line 2: test_mean must be float; got 'good'"):
        read_csv(path, FrontRow)
    path.write_text(text.replace(",models/3", ""))
    with pytest.raises(DataError, match=r"line 2 must have 20 cells; it has 19"):
        read_csv(path, FrontRow)
