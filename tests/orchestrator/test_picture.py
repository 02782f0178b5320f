"""A picture comes out of whatever a study holds."""

import dataclasses
import math
from pathlib import Path

import pytest

from orchestrator.report.picture import pareto
from orchestrator.report.rows import BaselineRow, FrontRow, TrialRow

FRONT = [FrontRow(n, 0.9 + 0.01 * n, 0.01, 2, 10**8 * n, n / 10, 10, 0.5, 1.0, "") for n in (1, 3, 7)]
DENSE = FrontRow(-1, 0.985, 0.0, 2, 10**9, 1.0, 20, 1.0, 2.0, "")
TRIALS = [
    TrialRow(0, "completed", 2, None, 0.95, 1, 0.5, 1, 0.5, 1.0, None, "", ""),
    TrialRow(1, "stopped", 0, None, 0.10, 1, 0.004, 1, 0.5, 1.0, None, "", ""),
    TrialRow(2, "rejected", 0, None, None, 1, 0.9, 1, 0.5, 1.0, None, "", ""),
    TrialRow(3, "failed", 0, None, math.nan, None, None, None, None, 1.0, None, "", ""),
]
BASELINES = [BaselineRow("random", 3, 0.4, 0.2, 2, 1, 0.3, 1, 0.3, 1.0, "")]


@pytest.mark.parametrize(
    ("trials", "front", "baselines", "dense"),
    [
        (TRIALS, FRONT, BASELINES, DENSE),
        (TRIALS, [], [], None),
        ([], FRONT[:1], [], None),
        ([], [], BASELINES, DENSE),
        ([], [], [], None),
        ([], [dataclasses.replace(row, test_mean=0.0, test_std=0.0) for row in FRONT], [], None),
    ],
)
def test_every_combination_gives_a_png(
    tmp_path: Path,
    trials: list[TrialRow],
    front: list[FrontRow],
    baselines: list[BaselineRow],
    dense: FrontRow | None,
) -> None:
    path = tmp_path / "pareto.png"
    pareto(path, trials, front, baselines, quality="accuracy", dense=dense, title="a study")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    pareto(path, trials, front, baselines, quality="accuracy", dense=dense, title="a study")
    assert path.read_bytes() == content
