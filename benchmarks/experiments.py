"""Every experiment in full, in one table: `python benchmarks/experiments.py`, `make experiments`.

Each runs in a process of its own, with one thread. The table has the quality of the dense model, of
the best model under 50 % and under 25 % of the FLOPs, on test data with the standard deviation over
the confirmation's seeds, and the CPU seconds of the whole study. A finished study is not run again:
then its seconds are those of showing it, so give another `--out` to measure.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import machine

from orchestrator.results.rows import ConfirmedRow, read_csv

EXPERIMENTS = {
    "resnet50": 1.0,
    "tabular": 1.0,
    "regression": -1.0,
    "multitask": 1.0,
    "segmentation": 1.0,
    "detection": 1.0,
    "text": 1.0,
    "language_model": -1.0,
    "speech_gru": 1.0,
    "speech_lstm": 1.0,
    "control": 1.0,
}
"""Experiments, and 1 where a large quality is good, else -1."""
LIMITS = (0.5, 0.25)
"""Shares of the dense model's FLOPs that the columns are about."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    given = parser.parse_args()
    print(machine("one thread"))
    print("\n| experiment | dense | under 50 % of the FLOPs | under 25 % | CPU s | s |")
    print("|---|---|---|---|---|---|")
    for name in given.only:
        print(line(name, given.out), flush=True)


def line(name: str, out: Path) -> str:
    """The row of an experiment, or why it failed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    words = [f"+experiment={name}", f"study.out={out}", "threads=1", "tracking=none"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        return f"| {name} | failed: {done.stderr.strip().splitlines()[-1]} | | | | |"
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (folder,) = [path for path in out.iterdir() if path.name.startswith(name)]
    cells = Result.read(folder, EXPERIMENTS[name]).cells()
    return f"| {' | '.join([f'`{name}`', *cells, f'{worked:.0f}', f'{seconds:.0f}'])} |"


@dataclass(frozen=True)
class Result:
    """The confirmed models of a study; `sign` is 1 where a large quality is good, else -1."""

    dense: ConfirmedRow
    front: Sequence[ConfirmedRow]
    sign: float

    @classmethod
    def read(cls, folder: Path, sign: float) -> Result:
        dense = read_csv(folder / "baselines.csv", ConfirmedRow)[0]
        return cls(dense, read_csv(folder / "front.csv", ConfirmedRow), sign)

    def cells(self) -> list[str]:
        """The dense model, then the best within each of the limits."""
        cells = [quality(self.dense)]
        for limit in LIMITS:
            within = [row for row in self.front if row.cost_ratio <= limit]
            best = max(within, key=lambda row: self.sign * row.test_mean, default=None)
            if best is None:
                cells.append("none")
            else:
                cells.append(f"{quality(best)} at {100 * best.cost_ratio:.1f} %")
        return cells


def quality(row: ConfirmedRow) -> str:
    return f"{row.test_mean:.4g} ± {row.test_std:.2g}"


if __name__ == "__main__":
    main()
