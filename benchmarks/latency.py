"""FLOPs and latency in the engine that is deployed: `python benchmarks/latency.py`.

Networks with random weights at 224 px, pruned to 50 % and 25 % of their FLOPs at equal ratios: by
us in multiples of 1 and of 8 channels, and by torch-pruning's uniform pruner. All models of a line
of the table are timed in the same turns with the dense one. `of the ideal` is the speed-up over
the ratio of FLOPs: 1 where a model with half of the FLOPs takes half of the time.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch_pruning as tp
import torchvision.models as tv
from machine import machine
from torch import nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Counts, Structure
from lightning_modules.pruning.thresholds import rounded
from orchestrator.latency.bench import Bench, LatencyConditions
from orchestrator.latency.engines import ENGINES
from orchestrator.search.lab.latency_model import pruned
from orchestrator.search.space.allocation import scaled

MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": tv.resnet50,
    "MobileNetV2": tv.mobilenet_v2,
}
TARGETS = (0.5, 0.25)
MULTIPLES = (1, 8)
BISECTIONS = 7


@dataclass(frozen=True)
class Smaller:
    """A pruned model, who made it, and its FLOPs against the dense model's."""

    maker: str
    model: nn.Module
    flops_ratio: float


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument("--engines", nargs="+", choices=list(ENGINES), default=["onnxruntime"])
    arguments.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    arguments.add_argument("--pixels", type=int, default=224)
    arguments.add_argument("--threads", type=int, default=1)
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(chosen.threads)
    print(f"{machine()}; {chosen.threads} threads in each pass, {chosen.pixels} px\n")
    print("| model | engine | batch | pruned by | FLOPs | latency | quartiles | of the ideal |")
    print("|---|---|---|---|---|---|---|---|")
    for name in chosen.models:
        for line in lines(name, chosen):
            print(line, flush=True)


def lines(name: str, chosen: argparse.Namespace) -> Iterator[str]:
    torch.manual_seed(0)
    dense = MODELS[name]().eval()
    example = Inputs((torch.randn(1, 3, chosen.pixels, chosen.pixels),))
    models = list(smaller_models(dense, example))
    for engine in chosen.engines:
        for batch in chosen.batches:
            conditions = LatencyConditions(ENGINES[engine], example.repeated(batch), chosen.threads)
            bench = Bench(conditions, dense, lambda: 1.0)
            latencies = bench.all_of([entry.model for entry in models])
            for entry, latency in zip(models, latencies, strict=True):
                ideal = entry.flops_ratio / latency.median
                yield (
                    f"| {name} | {engine} | {batch} | {entry.maker} | {entry.flops_ratio:.1%} "
                    f"| {latency.median:.1%} | {latency.lower:.1%} to {latency.upper:.1%} "
                    f"| {ideal:.2f} |"
                )


def smaller_models(dense: nn.Module, example: Inputs) -> Iterator[Smaller]:
    structure = discover(dense, example)
    cost = Cost(structure)
    whole = cost.macs(structure.sizes)
    for target in TARGETS:
        for multiple in MULTIPLES:
            kept = counts(structure, cost, target, multiple)
            maker = f"us, multiples of {multiple}"
            yield Smaller(maker, pruned(dense, structure, kept), cost.macs(kept) / whole)
        yield by_torch_pruning(dense, example.args[0], target)


def counts(structure: Structure, cost: Cost, target: float, multiple: int) -> Counts:
    """Equal ratios of all groups within the target."""

    def macs(kept: Counts) -> int:
        return cost.macs(rounded(structure, kept, multiple))

    within = int(target * cost.macs(structure.sizes))
    even = np.ones(len(structure.groups))
    return rounded(structure, scaled(structure.sizes, macs, within, even), multiple)


def by_torch_pruning(dense: nn.Module, x: torch.Tensor, target: float) -> Smaller:
    """Its uniform pruner, by bisection of the pruning ratio."""
    whole, _ = tp.utils.count_ops_and_params(dense, x)
    low = 0.0
    high = 1.0
    best: Smaller | None = None
    for _ in range(BISECTIONS):
        ratio = 0.5 * (low + high)
        model = copy.deepcopy(dense)
        pruner = tp.pruner.MagnitudePruner(
            model,
            x,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[part for part in model.modules() if isinstance(part, nn.Linear)],
        )
        pruner.step()
        macs, _ = tp.utils.count_ops_and_params(model, x)
        if macs <= target * whole:
            high = ratio
            best = Smaller("torch-pruning, uniform", model.eval(), macs / whole)
        else:
            low = ratio
    assert best is not None
    return best


if __name__ == "__main__":
    main()
