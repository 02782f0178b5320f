"""What can be pruned in other people's models: `python benchmarks/coverage.py`.

Each model is built with random weights in a process of its own, which has limits of time and
memory. A row has the groups, the prunable share of layers and MACs, how far removed units are from
masked ones on a random plan of the groups for which they must agree, whether the MACs of the dense
and of a smaller model are those that torch counts, the seconds, and the groups that torch-pruning
finds. `--write` puts the table into docs/coverage.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.errors import DiscoveryError
from lightning_modules.pruning.cost import Cost, prunable_macs_fraction
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.discovery.limits import limited
from lightning_modules.pruning.discovery.tracer import undisturbed
from lightning_modules.pruning.discovery.verify import randomised
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
SIZES = {"swin": 224, "vit": 224, "maxvit": 224, "inception": 128, "deit": 224}
"""Pixels of models, by the beginning of their names, that do not take 64."""
DECISIVE = (
    "resnet50",
    "googlenet",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
    "timm:nf_resnet26",
    "timm:resnetv2_50x1_bit",
)
"""What is measured by default: models that differ in what makes pruning hard."""
COLUMNS = (
    ("model", "model"),
    ("px", "px"),
    ("source", "found by"),
    ("groups", "groups"),
    ("layers", "layers"),
    ("prunable_macs", "prunable MACs"),
    ("error", "removed vs masked"),
    ("exact", "MACs exact"),
    ("seconds", "CPU s"),
    ("theirs", "torch-pruning"),
    ("note", "what stays whole"),
)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--models", nargs="+", default=list(DECISIVE))
    arguments.add_argument("--all", action="store_true", help="every classifier of torchvision")
    arguments.add_argument("--seconds", type=float, default=120.0, help="CPU time for a model")
    arguments.add_argument("--memory-gb", type=float, default=8.0)
    arguments.add_argument("--write", action="store_true", help="write docs/coverage.md")
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen.child, chosen.seconds, chosen.memory_gb)))
        return
    rows = []
    for name in _all_classifiers() if chosen.all else chosen.models:
        rows.append(in_a_process(name, chosen.seconds, chosen.memory_gb))
        print(" | ".join(str(rows[-1].get(key, "")) for key, _ in COLUMNS), flush=True)
        if chosen.write:
            PAGE.write_text(page(rows))


def _all_classifiers() -> list[str]:
    import torchvision.models as tv

    return list(tv.list_models(module=tv))


def in_a_process(name: str, seconds: float, memory_gb: float) -> dict[str, Any]:
    """The row of one model, or the reason why there is none."""
    command = [sys.executable, __file__, "--child", name]
    command += ["--seconds", str(seconds), "--memory-gb", str(memory_gb)]
    patience = 5 * seconds + 60  # other processes may keep the processor busy
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return {"model": name, "note": f"did not end within {patience:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"model": name, "note": lines[-1][:160]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(name: str, seconds: float, memory_gb: float) -> dict[str, Any]:
    """The row of one model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels = next((size for key, size in SIZES.items() if _bare(name).startswith(key)), 64)
    model = build(name)
    x = torch.randn(1, 3, pixels, pixels)
    begin = time.process_time()
    structure = discover(model, (x,), seconds, memory_gb)
    spent = time.process_time() - begin
    return {
        "model": name,
        "px": pixels,
        "source": structure.source,
        "groups": len(structure.groups),
        "layers": f"{structure.prunable_layers} of {structure.layers}",
        "prunable_macs": f"{prunable_macs_fraction(structure):.1%}",
        "error": removed_versus_masked(model, structure, x),
        "exact": "yes" if is_exact(model, structure, x) else "**no**",
        "seconds": f"{spent:.1f}",
        "theirs": torch_pruning(model, x, seconds, memory_gb),
        "note": reasons(structure),
    }


def _bare(name: str) -> str:
    return name.rpartition(":")[2]


def build(name: str) -> nn.Module:
    """A classifier of ten classes: of torchvision, or of timm behind `timm:`."""
    if name.startswith("timm:"):
        import timm

        return timm.create_model(_bare(name), num_classes=10).eval()  # type: ignore[no-any-return]
    import torchvision.models as tv

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    return tv.get_model(name, num_classes=10, **options).eval()  # type: ignore[no-any-return]


def plan(structure: Structure, groups: Iterable[int]) -> Keep:
    """Drop about half of each group, never all."""
    random = np.random.default_rng(0)
    keep = structure.full()
    for index in groups:
        group = structure.groups[index]
        some = random.random(group.size) < 0.5
        some[random.integers(group.size)] = True
        keep[group.units] = some
    return keep


def removed_versus_masked(model: nn.Module, structure: Structure, x: torch.Tensor) -> str:
    """The largest difference over the largest output, in double precision."""
    exact = [index for index, group in enumerate(structure.groups) if group.mask_exact]
    if not exact:
        return "no exact group"
    keep = plan(structure, exact)
    twin = randomised(model, torch.Generator().manual_seed(0)).double()
    with torch.no_grad(), undisturbed():
        small = remove(twin, structure, keep)(x.double())
        zeroed = masked(twin, structure, keep)(x.double())
    return f"{((small - zeroed).abs().max() / zeroed.abs().max()).item():.0e}"


def is_exact(model: nn.Module, structure: Structure, x: torch.Tensor) -> bool:
    """Whether the MACs of the dense model and of a plan of all groups are torch's."""
    cost = Cost(structure)
    keep = plan(structure, range(len(structure.groups)))
    small = remove(model, structure, keep)
    dense = cost.macs(structure.sizes) == counted(model, x)
    return dense and cost.macs(structure.counts(keep)) == counted(small, x)


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """Half of torch's FLOPs, with attention on the path that is made of matrix products."""
    with (
        undisturbed(),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model.eval()(x)
    return int(counter.get_total_flops()) // 2


def torch_pruning(model: nn.Module, x: torch.Tensor, seconds: float, memory_gb: float) -> str:
    """The groups in torch-pruning's graph, and whether the model runs with half of all channels.

    The last linear layer is left whole, as its users do.
    """
    try:
        groups = limited(lambda: _halved(model, x), seconds, memory_gb)
    except DiscoveryError:
        return "over the limits"
    except Exception as error:  # what it raises is the finding
        return f"fails: {type(error).__name__}"
    return f"{groups} groups, runs"


def _halved(model: nn.Module, x: torch.Tensor) -> int:
    """Cut the model by torch-pruning, run it, and return the number of groups."""
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=last,
    )
    groups = len(list(pruner.DG.get_all_groups(ignored_layers=last)))
    pruner.step()
    with torch.no_grad():
        model(x)
    return groups


def reasons(structure: Structure) -> str:
    """Why layers stay whole, with the number of layers; the output is expected to."""
    count: dict[str, int] = {}
    for skipped in structure.skipped:
        if "model's output" not in skipped.reason:
            count[skipped.reason] = count.get(skipped.reason, 0) + 1
    most = sorted(count.items(), key=lambda item: -item[1])[:2]
    return "; ".join(f"{number} x {reason[:90]}" for reason, number in most) or "the output"


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# What can be pruned in other people's models",
        "",
        "Made by `python benchmarks/coverage.py --write`: random weights, batch 1, one thread,",
        "each model in a process of its own. *Removed vs masked* is the largest difference over",
        "the largest output on a random plan of the groups for which both must agree, in double",
        "precision. *MACs exact*: those of the dense and of a smaller model equal torch's count.",
        "*torch-pruning*: its groups, and whether the model runs with half of all channels.",
        f"torch {torch.__version__}.",
        "",
        "| " + " | ".join(title for _, title in COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        cells = [str(row.get(key, "")).replace("|", "/") for key, _ in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
