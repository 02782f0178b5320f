"""Accuracy without training: `python benchmarks/preview.py --seeds 3`.

Each dense model of benchmarks/search.py is cut to some FLOPs ratios, the same ratio of every group,
by magnitude (l2) and by second-order scores (obs); then norms are recalibrated. Plain removal
stands beside compensated removal. Seeds change the samples that are scored, fitted on and
recalibrated with. Accuracy is on validation data; the seconds are those of the process for one
compensated plan, without its scores. No label is used but to measure.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import torch
from machine import processor  # type: ignore[import-not-found]
from search import SETTINGS, common, composed, dense  # type: ignore[import-not-found]

from lightning_modules.data.contract import set_up
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep
from orchestrator.files import write_atomic
from orchestrator.progress import Progress
from orchestrator.search.lab.lab import Lab
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.space.allocation import scaled
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.settings import Settings

METHODS = ("l2", "obs")


@dataclass(frozen=True)
class Row:
    """Accuracies by seed, plain and compensated by method; CPU seconds of a compensated plan."""

    ratio: float
    accuracies: dict[str, list[float]]
    seconds: list[float]

    def line(self) -> str:
        cells = [f"{100 * self.ratio:.0f} %"]
        for values in self.accuracies.values():
            spread = stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{100 * mean(values):.1f} ± {100 * spread:.1f}")
        return f"| {' | '.join([*cells, f'{mean(self.seconds):.1f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument(
        "--ratios", nargs="+", type=float, default=[0.7, 0.5, 0.35, 0.25, 0.15, 0.1]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--baselines", type=Path, default=Path("baselines"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.baselines.mkdir(parents=True, exist_ok=True)
    print(f"{processor()}, torch {torch.__version__}, one thread, {given.seeds} seeds")
    for name in given.settings:
        settings, lab = laboratory(name, given.baselines)
        print(f"\n{SETTINGS[name].title}: dense {100 * lab.facts.dense_quality:.1f} %\n")
        print("| FLOPs | l2 | l2, compensated | obs | obs, compensated | CPU s a plan |")
        print("|---|---|---|---|---|---|")
        for row in rows(settings, lab, given.ratios, given.seeds):
            print(row.line(), flush=True)


def laboratory(name: str, baselines: Path) -> tuple[Settings, Lab]:
    """The setting with its dense model, trained where it is not there yet."""
    weights = baselines / f"{name}.safetensors"
    if not weights.exists():
        write_atomic(weights, dense(name, baselines).read_bytes())
    words = [
        *SETTINGS[name].overrides.split(),
        "phases.train.epochs=0",
        f"phases.train.checkpoint={weights}",
        *common(baselines, Path(tempfile.mkdtemp())),
        "phases.finetune.distillation=null",
        "method.depth=false",
        "method.compensate=true",
    ]
    settings = composed(words)
    data = settings.data.build()
    set_up(data)
    with open(os.devnull, "w") as silent:
        return settings, prepare(settings, data, Progress(silent)).lab


def rows(settings: Settings, lab: Lab, ratios: list[float], seeds: int) -> Iterator[Row]:
    facts = lab.facts
    full = facts.structure.full()
    share = np.ones(len(facts.structure.groups))
    scores = {}
    for method in METHODS:
        pruner = UnitPruner(lab, composed([f"method={method}"]).method)
        for seed in range(seeds):
            scores[method, seed] = pruner.scores(facts.model, full, seed)
    for ratio in ratios:
        macs = int(ratio * facts.dense_macs)
        kept = scaled(facts.structure.sizes, facts.cost.macs, macs, share, 1)
        row = Row(ratio, {}, [])
        for (method, seed), of_units in scores.items():
            keep = thresholds.choose(facts.structure, of_units, full, kept)
            measure(replace(lab, seed=seed), keep, method, row)
        yield row


def measure(lab: Lab, keep: Keep, method: str, row: Row) -> None:
    """Adds one seed of one method to the row."""
    facts = lab.facts
    compensator = lab.compensator(facts.model, facts.structure.full())
    assert compensator.targets  # recorded once for all plans, before the clock runs
    begin = time.process_time()
    compensated, _ = compensator(keep)
    row.seconds.append(time.process_time() - begin)
    plain = remove(facts.model, facts.structure, keep)
    for name, model in ((method, plain), (f"{method}, compensated", compensated)):
        lab.recalibrate(model, lab.phases.finetune.recalibration_batches, lab.seed)
        row.accuracies.setdefault(name, []).append(lab.validate(model)["accuracy"])


if __name__ == "__main__":
    main()
