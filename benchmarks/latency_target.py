"""Quality against measured latency: targets of FLOPs and of latency, beside one another.

Models are cut from one dense model, compensated and never trained. They are shared out by equal
ratios, by least error per MAC, and by least error per millisecond of the tables; each within the
target of its own cost. Widths are in the multiples that suit the engine. All models are timed in
the same turns with the dense one: `python benchmarks/latency_target.py`.

Accuracies are coarse, so that layouts are compared by the divergence (KL, nats) from the dense
model's outputs on validation inputs: the last lines say how long a model takes that is as near.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from machine import machine
from search import composed
from torch import nn

from lightning_modules.pruning import thresholds
from lightning_modules.pruning.structure import Counts
from orchestrator.progress import Progress
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.judge import validation_judge
from orchestrator.search.lab.lab import FinalLab, Lab
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.space.allocated import ranked
from orchestrator.search.space.allocation import scaled
from orchestrator.search.space.outline import context_of, within_study
from orchestrator.search.trials.pruners import UnitPruner, comparable
from orchestrator.settings import Settings

LAYOUTS = ("equal ratios", "error per MAC", "error per ms")


@dataclass(frozen=True)
class Cut:
    """A model, how its units were shared out, and what was known of it before it was measured."""

    layout: str
    target: float
    model: nn.Module
    flops_ratio: float
    estimated_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", default="mobilenet_v2")
    parser.add_argument("--pixels", type=int, default=48)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument(
        "--targets", nargs="+", type=float, default=[0.7, 0.55, 0.4, 0.3, 0.2, 0.15]
    )
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--baselines", type=Path, default=Path("baselines"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    settings, final = laboratory(given)
    lab = final.lab
    model = lab.facts.prices.latency
    assert model is not None
    print(f"{machine()}; {given.engine}, one thread, {given.pixels} px, {given.experiment}")
    print(f"dense: {lab.facts.dense_quality:.1%}, {lab.facts.prices.bench.dense_ms:.3g} ms")
    print(f"estimate: {model.mean_error:.1%} off, {model.worst_error:.1%} at worst\n")
    print("| shared out by | target | FLOPs | estimated | measured | divergence | val. | test |")
    print("|---|---|---|---|---|---|---|---|")
    fronts: dict[str, list[tuple[float, float]]] = {}
    for found in measured(final, list(cuts(settings, lab, given.targets))):
        print(found.line(), flush=True)
        fronts.setdefault(found.cut.layout, []).append((found.divergence, found.latency))
    print()
    for layout in LAYOUTS:
        print(f"{layout}: {faster(fronts[layout], fronts[LAYOUTS[1]])}")


def laboratory(given: argparse.Namespace) -> tuple[Settings, FinalLab]:
    settings = composed(
        [
            f"+experiment={given.experiment}",
            "job=preview",
            "objectives=quality_latency",
            f"objectives.engine={given.engine}",
            "objectives.engine_threads=1",
            f"method.round_to={given.round_to}",
            f"data.size={given.pixels}",
            f"study.baselines={given.baselines}",
            f"study.out={tempfile.mkdtemp()}",
            "threads=1",
        ]
    )
    data = settings.data.build()
    data.prepare_data()
    data.setup(None)
    with open(os.devnull, "w") as silent:
        return settings, prepare(settings, data, Progress(silent))


def cuts(settings: Settings, lab: Lab, targets: list[float]) -> Iterator[Cut]:
    """Each target in each layout."""
    facts = lab.facts
    pruner = UnitPruner(lab, settings.method.choices()[0])
    full = facts.structure.full()
    errors = pruner.scores(facts.model, full, lab.seed)
    for layout in LAYOUTS:
        along_flops = replace(facts, latency_targets=False)
        known = facts if layout == "error per ms" else along_flops
        # the ranking of this layout, as a study along its cost would have it
        places = comparable(UnitPruner(replace(lab, facts=known), pruner.method), errors)
        for target in targets:
            kept = shared_out(settings, pruner, known, places, layout, target)
            model = cut(pruner, errors, kept)
            yield Cut(
                layout,
                target,
                model,
                facts.ratios(kept)["flops"],
                facts.prices.latency(kept) if facts.prices.latency else 0.0,
            )


def shared_out(
    settings: Settings,
    pruner: UnitPruner,
    facts: Facts,
    places: np.ndarray,
    layout: str,
    target: float,
) -> Counts:
    """Units kept per group, rounded for the hardware and within the target."""
    context = context_of(pruner.method, pruner.structure, facts.model, places)
    context = within_study(context, settings, facts.target)
    within = int(target * context.dense_macs)

    def cost(kept: Counts) -> int:
        return context.macs(context.round(kept))

    sizes = facts.structure.sizes
    if layout == "equal ratios":
        return context.round(scaled(sizes, cost, within, np.ones(len(sizes))))
    at_target = ranked(context, cost)
    assert at_target is not None
    return context.round(at_target(within))


def cut(pruner: UnitPruner, errors: np.ndarray, kept: Counts) -> nn.Module:
    lab = pruner.lab
    full = pruner.structure.full()
    keep = thresholds.choose(pruner.structure, errors, full, kept)
    model, _ = pruner.cut(lab.facts.model, full, keep, lab.seed)
    lab.recalibrate(model, lab.phases.finetune.recalibration_batches, lab.seed)
    return model


@dataclass(frozen=True)
class Measured:
    """A model with its latency against the dense one's, and how good it is."""

    cut: Cut
    estimated: float
    latency: float
    divergence: float
    validation: float
    test: float

    def line(self) -> str:
        cut = self.cut
        return (
            f"| {cut.layout} | {cut.target:.0%} | {cut.flops_ratio:.1%} | {self.estimated:.1%} "
            f"| {self.latency:.1%} | {self.divergence:.4f} | {self.validation:.1%} "
            f"| {self.test:.1%} |"
        )


def measured(final: FinalLab, models: list[Cut]) -> Iterator[Measured]:
    lab = final.lab
    bench = lab.facts.prices.bench
    judge = validation_judge(lab, "this benchmark")
    latencies = bench.all_of([one.model for one in models])
    for one, latency in zip(models, latencies, strict=True):
        yield Measured(
            one,
            one.estimated_ms / bench.dense_ms,
            latency.median / bench.dense_ms,
            judge(one.model),
            lab.validate(one.model)["accuracy"],
            final.test(one.model).metrics["accuracy"],
        )


def faster(front: list[tuple[float, float]], other: list[tuple[float, float]]) -> str:
    """Latency of a layout over that of another one where both have models as near as that."""
    ours = np.log(np.array(undominated(front))).T
    theirs = np.log(np.array(undominated(other))).T
    at = np.unique(np.concatenate([ours[0], theirs[0]]))
    within = (at >= max(ours[0][0], theirs[0][0])) & (at <= min(ours[0][-1], theirs[0][-1]))
    at = at[within]
    if not len(at):
        return "no divergence in common"
    logs = np.interp(at, *ours) - np.interp(at, *theirs)
    words = ", ".join([f"{ratio:.2f}" for ratio in np.exp(logs)])
    return f"{np.exp(logs.mean()):.2f} of the latency of {LAYOUTS[1]} at equal divergence ({words})"


def undominated(front: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs that no other pair is below in both, by rising divergence."""
    left: list[tuple[float, float]] = []
    for divergence, latency in sorted(front):
        if not left or latency < left[-1][1]:
            left.append((divergence, latency))
    return left


if __name__ == "__main__":
    main()
