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
import textwrap
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage_models import FAMILIES, built, every_name
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.errors import DiscoveryError
from lightning_modules.pruning.cost import Cost, prunable_macs_fraction
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.discovery.limits import limited
from lightning_modules.pruning.discovery.tracer import undisturbed
from lightning_modules.pruning.discovery.verify import randomised
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
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
TITLES = {
    "": "Classification, torchvision",
    "detection": "Detection, torchvision",
    "segmentation": "Segmentation, torchvision",
    "video": "Video, torchvision",
    "timm": "timm",
    "hf": "Hugging Face",
    "yolo": "Ultralytics",
    "recurrent": "Recurrent networks",
}
"""Of the families, by how the names of their models begin."""
COLUMNS = (
    ("model", "model"),
    ("input", "input"),
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
    arguments.add_argument(
        "--families", nargs="*", default=[], choices=FAMILIES, help="every model of these"
    )
    arguments.add_argument("--seconds", type=float, default=120.0, help="CPU time for a model")
    arguments.add_argument("--memory-gb", type=float, default=8.0)
    arguments.add_argument("--write", action="store_true", help="write docs/coverage.md")
    arguments.add_argument(
        "--rows", type=Path, help="a file of JSON lines; models with a row in it are not run again"
    )
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen.child, chosen.seconds, chosen.memory_gb)))
        return
    names = [name for family in chosen.families for name in every_name(family)]
    kept = rows_in(chosen.rows)
    rows = []
    for name in names or chosen.models:
        row = kept.get(name)
        if row is None:
            row = in_a_process(name, chosen.seconds, chosen.memory_gb)
            keep_row(chosen.rows, row)
        rows.append(row)
        print(" | ".join(str(row.get(key, "")) for key, _ in COLUMNS), flush=True)
        if chosen.write:
            PAGE.write_text(page(rows))


def rows_in(path: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of a file by their models; there are none without a file."""
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["model"]: row for row in rows}


def keep_row(path: Path | None, row: Mapping[str, Any]) -> None:
    if path is not None:
        with path.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


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
    model, inputs = built(name)
    begin = time.process_time()
    structure = discover(model, inputs, seconds, memory_gb)
    spent = time.process_time() - begin
    return {
        "model": name,
        "input": " + ".join("x".join(map(str, x.shape[1:])) for x in inputs.tensors()),
        "source": structure.source,
        "groups": len(structure.groups),
        "layers": f"{structure.prunable_layers} of {structure.layers}",
        "prunable_macs": f"{prunable_macs_fraction(structure):.1%}",
        "error": removed_versus_masked(model, structure, inputs),
        "exact": "yes" if is_exact(model, structure, inputs) else "**no**",
        "seconds": f"{spent:.1f}",
        "theirs": torch_pruning(model, inputs, seconds, memory_gb),
        "note": reasons(structure),
    }


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


def removed_versus_masked(model: nn.Module, structure: Structure, inputs: Inputs) -> str:
    """The largest difference over the largest output, in double precision."""
    exact = [index for index, group in enumerate(structure.groups) if group.mask_exact]
    if not exact:
        return "no exact group"
    keep = plan(structure, exact)
    twin = randomised(model, torch.Generator().manual_seed(0)).double()
    with torch.no_grad(), undisturbed():
        precise = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
        small = precise.call(remove(twin, structure, keep))
        zeroed = precise.call(masked(twin, structure, keep))
    return f"{difference(small, zeroed):.0e}"


def difference(outputs: Any, others: Any) -> float:
    """The largest difference of two trees of tensors, over the largest value."""
    worst = 0.0
    largest = 0.0
    for one, other in zip(tree_leaves(outputs), tree_leaves(others), strict=True):
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            worst = max(worst, (one - other).abs().max().item())
            largest = max(largest, other.abs().max().item())
    return worst / max(largest, 1e-300)


def is_exact(model: nn.Module, structure: Structure, inputs: Inputs) -> bool:
    """Whether the MACs of the dense model and of a plan of all groups are torch's."""
    cost = Cost(structure)
    keep = plan(structure, range(len(structure.groups)))
    small = remove(model, structure, keep)
    dense = cost.macs(structure.sizes) == counted(model, inputs)
    return dense and cost.macs(structure.counts(keep)) == counted(small, inputs)


def counted(model: nn.Module, inputs: Inputs) -> int:
    """Half of torch's FLOPs, with attention on the path that is made of matrix products."""
    with (
        undisturbed(),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        # its recurrent layers are one operator, which the counter does not know
        torch.backends.mkldnn.flags(enabled=False),
        FlopCounterMode(display=False) as counter,
    ):
        inputs.call(model.eval())
    return int(counter.get_total_flops()) // 2


def torch_pruning(model: nn.Module, inputs: Inputs, seconds: float, memory_gb: float) -> str:
    """The groups in torch-pruning's graph, and whether the model runs with half of all channels.

    The last linear layer is left whole, as its users do.
    """
    try:
        groups = limited(lambda: _halved(model, inputs), seconds, memory_gb)
    except DiscoveryError:
        return "over the limits"
    except Exception as error:  # what it raises is the finding
        return f"fails: {type(error).__name__}"
    return f"{groups} groups, runs"


def _halved(model: nn.Module, inputs: Inputs) -> int:
    """Cut the model by torch-pruning, run it, and return the number of groups."""
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    pruner = tp.pruner.BasePruner(
        model,
        inputs.args,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=last,
    )
    groups = len(list(pruner.DG.get_all_groups(ignored_layers=last)))
    pruner.step()
    with torch.no_grad():
        inputs.call(model)
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
    """The tables as Markdown, one for each family, and what they come to."""
    lines = [
        "# What can be pruned in other people's models",
        "",
        "Made by `python benchmarks/coverage.py --write --families ...`: random weights, batch 1,",
        "one thread, each model in a process of its own. *Removed vs masked* is the largest",
        "difference over the largest output on a random plan of the groups for which both must",
        "agree, in double precision. *MACs exact*: those of the dense and of a smaller model equal",
        "torch's count. *torch-pruning*: its groups, and whether the model runs with half of all",
        f"channels. torch {torch.__version__}.",
        "",
        *totals(rows),
    ]
    for family, title in TITLES.items():
        members = [row for row in rows if row["model"].rpartition(":")[0] == family]
        if members:
            lines += ["", f"## {title}", "", *table(members)]
    return "\n".join(lines) + "\n"


def totals(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many models are found, how much of them can go, and where torch-pruning fails."""
    found = [row for row in rows if "groups" in row]
    missing = [row["model"] for row in rows if "groups" not in row]
    less = [row["model"] for row in found if float(row["prunable_macs"].rstrip("%")) < 90.0]
    exact = sum(row["exact"] == "yes" for row in found)
    theirs = sum(str(row["theirs"]).endswith("runs") for row in found)
    text = (
        f"Of {len(rows)} models {len(found)} are found. In {len(found) - len(less)} of these at "
        f"least 90 % of the MACs can be pruned, and in {exact} the MACs are exact. torch-pruning "
        f"halves {theirs}."
    )
    if less:
        text += f" Below 90 %, each with its reasons: {', '.join(less)}."
    if missing:
        text += f" Beyond the limits of time and memory: {', '.join(missing)}."
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of one family, as lines of Markdown."""
    lines = [
        "| " + " | ".join(title for _, title in COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        cells = [str(row.get(key, "")).replace("|", "/") for key, _ in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
