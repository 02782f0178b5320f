"""Structure beside torch-pruning and a plain copy: `python benchmarks/structure.py`.

For each model at 64 px, one thread, medians in milliseconds over the same random plans: discovery
once; a plan cut by us, by torch-pruning (construct + step), and a plain deepcopy; MACs of a plan by
us and by torch-pruning's counter, and how many of ours equal torch's FlopCounterMode on the cut
model. torch-pruning edits the model in place, so that each plan also needs a copy: `tp` leaves it
out, `(tp+copy)/ours` counts it, as our own time does.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
import torchvision.models as tv
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure

MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": tv.resnet50,
    "MobileNetV2": tv.mobilenet_v2,
    "DenseNet-121": tv.densenet121,
}


@dataclass(frozen=True)
class Row:
    """Milliseconds, except `exact`: plans whose MACs equal torch's count."""

    model: str
    discovery: float
    removal: float
    torch_pruning: float
    deepcopy: float
    macs: float
    counter: float
    exact: str


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--plans", type=int, default=5, help="random plans per model")
    arguments.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [measure(name, MODELS[name], chosen.plans) for name in chosen.models]
    print(
        f"torch {torch.__version__}, torch-pruning {tp.__version__}, one thread, 64 px, median ms"
    )
    heads = [
        "model",
        "discover",
        "remove",
        "tp",
        "tp/ours",
        "(tp+copy)/ours",
        "deepcopy",
        "ours/copy",
        "macs",
        "tp macs",
        "tp/ours",
        "exact",
    ]
    print(" | ".join(f"{head:>15}" for head in heads))
    for r in rows:
        cells: list[Any] = [
            r.model,
            r.discovery,
            r.removal,
            r.torch_pruning,
            r.torch_pruning / r.removal,
            (r.torch_pruning + r.deepcopy) / r.removal,
            r.deepcopy,
            r.removal / r.deepcopy,
            r.macs,
            r.counter,
            r.counter / r.macs,
            r.exact,
        ]
        print(" | ".join(f"{c:>15.3f}" if isinstance(c, float) else f"{c:>15}" for c in cells))


def measure(name: str, make: Callable[[], nn.Module], plans: int) -> Row:
    model, x = make().eval(), torch.randn(1, 3, 64, 64)
    discovery, structure = clock(lambda: discover(model, (x,), seconds=120.0))
    cost, rng = Cost(structure), np.random.default_rng(0)
    removal, copying, theirs, ours_macs, their_macs, exact = [], [], [], [], [], 0
    for _ in range(plans):
        ratios = rng.uniform(0.0, 0.7, len(structure.groups))
        keep = plan(structure, ratios, rng)
        taken, small = clock(lambda keep=keep: remove(model, structure, keep))  # type: ignore[misc]
        removal.append(taken)
        copying.append(clock(lambda: copy.deepcopy(model))[0])
        twin = copy.deepcopy(model)
        theirs.append(clock(lambda r=ratios, t=twin: torch_pruning(t, x, structure, r))[0])  # type: ignore[misc]
        counts = structure.counts(keep)
        ours_macs.append(clock(lambda c=counts: [cost.macs(c) for _ in range(100)])[0] / 100)  # type: ignore[misc]
        their_macs.append(clock(lambda s=small: tp.utils.count_ops_and_params(s, x))[0])  # type: ignore[misc]
        exact += cost.macs(counts) == counted(small, x)
    return Row(
        name,
        discovery,
        statistics.median(removal),
        statistics.median(theirs),
        statistics.median(copying),
        statistics.median(ours_macs),
        statistics.median(their_macs),
        f"{exact}/{plans}",
    )


def plan(structure: Structure, ratios: np.ndarray, rng: np.random.Generator) -> Keep:
    keep = structure.full()
    for group, ratio in zip(structure.groups, ratios, strict=True):
        dropped = rng.permutation(group.size)[: int(group.size * ratio)]
        keep[group.start + dropped] = False
    return keep


def torch_pruning(
    twin: nn.Module, x: torch.Tensor, structure: Structure, ratios: np.ndarray
) -> None:
    """The same ratios, by the layers that produce each group; edits the model in place."""
    wanted = {}
    for group, ratio in zip(structure.groups, ratios, strict=True):
        for member in group.members:
            layer = twin.get_submodule(member.tensor.rpartition(".")[0])
            if member.role == "out" and isinstance(layer, nn.Conv2d | nn.Linear):
                wanted[layer] = float(ratio)
    pruner = tp.pruner.BasePruner(
        twin,
        x,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=0.0,
        pruning_ratio_dict=wanted,
        ignored_layers=[m for m in twin.modules() if isinstance(m, nn.Linear)],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()


def counted(model: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds and the result of one call."""
    start = time.perf_counter()
    result = call()
    return (time.perf_counter() - start) * 1e3, result


if __name__ == "__main__":
    main()
