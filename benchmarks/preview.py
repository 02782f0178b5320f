"""Accuracy without training: `python benchmarks/preview.py --seeds 3`.

Each dense model of benchmarks/search.py is cut to some FLOPs ratios; then norms are recalibrated,
and nothing is trained. The columns: torch-pruning's magnitude pruner; magnitude (l2) and
second-order scores (obs) at equal ratios of all groups, plain and compensated; the allocation of
least error per MAC (per_mac); and allocations that are searched around that, judged by the
divergence of the outputs. Seeds change the samples that are scored, fitted on and recalibrated
with. Accuracy is on validation data, and beside it on test data where allocations are searched,
since these are judged on validation inputs; the seconds are those of the process
for one compensated plan, without its scores. No label is used but to measure.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from machine import processor
from search import SETTINGS, common, composed, dense
from search_ladders import pruned
from torch import nn

from lightning_modules.data.contract import set_up
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.plan import Plan, by_group
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts, Keep
from lightning_modules.pruning.thresholds import Scores
from orchestrator.files import write_atomic
from orchestrator.progress import Progress
from orchestrator.search.lab.lab import FinalLab, Lab
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.space.allocated import ranked
from orchestrator.search.space.allocation import evenly
from orchestrator.search.space.outline import context_of
from orchestrator.search.trials.allocation_search import allocation_search
from orchestrator.search.trials.pruners import UnitPruner, comparable
from orchestrator.search.trials.working import Working
from orchestrator.settings import Settings

COLUMNS = (
    "torch-pruning",
    "l2",
    "l2, compensated",
    "obs",
    "obs, compensated",
    "obs per MAC, compensated",
    "searched",
)


@dataclass
class Row:
    """Accuracies by column, one of each seed, and CPU seconds of compensated plans."""

    validation: dict[str, list[float]] = field(default_factory=dict)
    test: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def line(self, name: str, accuracies: dict[str, list[float]]) -> str:
        cells = [name]
        for column in COLUMNS:
            cells.append(spread(accuracies.get(column, [])))
        return f"| {' | '.join([*cells, f'{mean(self.seconds):.1f}'])} |"


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{100 * mean(values):.1f} ± {100 * deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument(
        "--ratios", nargs="+", type=float, default=[0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05]
    )
    parser.add_argument("--searched", nargs="*", type=float, default=[0.15])
    parser.add_argument("--allocations", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--baselines", type=Path, default=Path("baselines"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.baselines.mkdir(parents=True, exist_ok=True)
    print(f"{processor()}, torch {torch.__version__}, one thread, {given.seeds} seeds")
    for name in given.settings:
        cutting = Cutting(*laboratory(name, given.baselines, given.allocations))
        quality = 100 * cutting.lab.facts.dense_quality
        rows = {ratio: Row() for ratio in given.ratios}
        for seed in range(given.seeds):
            print(f"{name}, seed {seed}", flush=True)
            for ratio in given.ratios:
                cutting.measure(rows[ratio], seed, ratio, ratio in given.searched)
        print(f"\n{SETTINGS[name].title}: dense {quality:.1f} % on validation data\n")
        print(f"| FLOPs | {' | '.join(COLUMNS)} | CPU s a plan |")
        print("|---" * (len(COLUMNS) + 2) + "|")
        for ratio, row in rows.items():
            print(row.line(f"{100 * ratio:.0f} %", row.validation))
            if row.test:
                print(row.line(f"{100 * ratio:.0f} %, test", row.test), flush=True)


def laboratory(name: str, baselines: Path, allocations: int) -> tuple[Settings, FinalLab]:
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
        f"search.allocations={allocations}",
    ]
    settings = composed(words)
    data = settings.data.build()
    set_up(data)
    with open(os.devnull, "w") as silent:
        return settings, prepare(settings, data, Progress(silent))


@dataclass
class Cutting:
    """Cuts one dense model in all ways."""

    settings: Settings
    final: FinalLab
    scores: dict[tuple[str, int], Scores] = field(default_factory=dict)

    @property
    def lab(self) -> Lab:
        return self.final.lab

    def measure(self, row: Row, seed: int, ratio: float, searched: bool) -> None:
        """Adds one seed to the row."""
        lab = replace(self.lab, seed=seed)
        for column, model in self.models(lab, row, ratio, searched):
            lab.recalibrate(model, lab.phases.finetune.recalibration_batches, seed)
            accuracy = lab.validate(model)["accuracy"]
            row.validation.setdefault(column, []).append(accuracy)
            if searched:
                row.test.setdefault(column, []).append(self.final.test(model).metrics["accuracy"])

    def models(
        self, lab: Lab, row: Row, ratio: float, searched: bool
    ) -> Iterator[tuple[str, nn.Module]]:
        even = evenly(lab.facts.structure, ratio)
        yield "torch-pruning", pruned(lab, ratio, whole=False)
        for method in ("l2", "obs"):
            pruner = self.pruner(lab, method)
            yield method, remove(lab.facts.model, pruner.structure, self.keep(pruner, even))
            yield f"{method}, compensated", self.compensated(pruner, even, row)
        allocated = self.per_mac(pruner, ratio)
        yield "obs per MAC, compensated", self.compensated(pruner, allocated, row)
        if searched:
            best = self.searched(pruner, allocated)
            yield "searched", self.compensated(pruner, best, row)

    def pruner(self, lab: Lab, method: str) -> UnitPruner:
        words = [f"method={method}", "method.compensate=true"]
        if method == "obs":
            words.append("method.scope=per_mac")
        return UnitPruner(lab, composed(words).method)

    def scored(self, pruner: UnitPruner) -> Scores:
        """Scores of the dense model, made once for each method and seed."""
        key = (pruner.method.name, pruner.lab.seed)
        if key not in self.scores:
            full = pruner.structure.full()
            self.scores[key] = pruner.scores(pruner.lab.facts.model, full, pruner.lab.seed)
        return self.scores[key]

    def keep(self, pruner: UnitPruner, kept: Counts) -> Keep:
        full = pruner.structure.full()
        return thresholds.choose(pruner.structure, self.scored(pruner), full, kept)

    def compensated(self, pruner: UnitPruner, kept: Counts, row: Row) -> nn.Module:
        lab = pruner.lab
        full = pruner.structure.full()
        assert lab.compensator(lab.facts.model, full).targets  # recorded before the clock runs
        begin = time.process_time()
        model, _ = pruner.cut(lab.facts.model, full, self.keep(pruner, kept), lab.seed)
        row.seconds.append(time.process_time() - begin)
        return model

    def per_mac(self, pruner: UnitPruner, ratio: float) -> Counts:
        places = comparable(pruner, self.scored(pruner))
        lab = pruner.lab
        context = context_of(pruner.method, pruner.structure, lab.facts.model, places)
        at_target = ranked(context, context.macs)
        assert at_target is not None
        return at_target(int(ratio * lab.facts.dense_macs))

    def searched(self, pruner: UnitPruner, kept: Counts) -> Counts:
        lab = pruner.lab
        search = allocation_search(self.settings, lab)
        assert search is not None
        plan = Plan(pruner.method.name, by_group(pruner.structure, kept), seed=lab.seed)
        working = Working(lab.facts.model, pruner.structure.full())
        return search(lab, pruner.method, plan, working).counts(pruner.structure)


if __name__ == "__main__":
    main()
