"""What a CUDA device changes: `python benchmarks/gpu.py`, within ten minutes.

It shows where the tensors of every phase lie, and how many copies between host and device a
training step makes; latency by the wall-clock beside that by CUDA events; training that runs out of
memory and goes on in halves; the same study in single and in half precision, and with two
workers on one device; and the files that are exported for the CPU afterwards. Without a CUDA
device it says so and ends. `--write docs/gpu.md` keeps the page.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from machine import processor
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_modules.data.contract import set_up
from lightning_modules.phases.memory import out_of_memory, release_memory
from lightning_modules.phases.trainer_options import TrainerOptions
from lightning_modules.pruning.clone import copy_of
from orchestrator.compose import load_settings
from orchestrator.files import write_atomic
from orchestrator.latency.bench import alone
from orchestrator.progress import Progress
from orchestrator.search.lab.lab import Lab, Training
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.settings import Settings

STUDY = [
    "+experiment=resnet50",
    "device=cuda",
    "tracking=none",
    "phases.train.epochs=8",
    "phases.confirm.baselines=[]",
    "phases.confirm.seeds=[0,1]",
    "study.n_trials=8",
    "search.chain.targets=4",
]
"""A study of ResNet-50 on digits, 64 x 64 pixels, that is short but has every phase."""
PROFILED_STEPS = 20
STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, default=None)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch finds no CUDA device on this machine")
        return
    lines = [
        "# On a GPU",
        "",
        f"{torch.cuda.get_device_name()}, {processor()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}. Made by `python benchmarks/gpu.py --write docs/gpu.md`.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            begin = time.perf_counter()
            for line in PARTS[name](Path(folder)):
                print(line, flush=True)
                lines.append(line)
            print(f"({name}: {time.perf_counter() - begin:.0f} s)", flush=True)
    if given.write is not None:
        write_atomic(given.write, "\n".join(lines) + "\n")


def settings_of(folder: Path, *more: str) -> Settings:
    """The settings of the study, with `more` in the words of the command line."""
    asked = {}
    for word in [*STUDY, *where(folder), *more]:
        key, _, value = word.lstrip("+").partition("=")
        asked[key] = yaml.safe_load(value)
    return load_settings(asked)


def where(folder: Path) -> list[str]:
    return [f"study.out={folder / 'runs'}", f"study.baselines={folder / 'baselines'}"]


def laboratory(folder: Path, *more: str) -> Lab:
    settings = settings_of(folder, *more)
    data = settings.data.build()
    set_up(data)
    with open(os.devnull, "w") as silent:
        return prepare(settings, data, Progress(silent)).lab


class Seen:
    """The kinds of device of the network's weights and inputs, while it is called."""

    def __init__(self, model: nn.Module) -> None:
        self.kinds: set[str] = set()
        model.register_forward_pre_hook(self._look)

    def _look(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        for tensor in [*inputs, *model.parameters(), *model.buffers()]:
            if isinstance(tensor, torch.Tensor):
                self.kinds.add(tensor.device.type)


def placement(folder: Path) -> Iterator[str]:
    """Where the tensors of every phase lie, and the copies of a training step."""
    lab = laboratory(folder, "method.compensate=true", "method=obs", "method.scope=per_mac")
    yield "\n## Where the work is done\n"
    yield "Kinds of device of the network's weights, buffers and inputs, whenever it is called.\n"
    yield "| phase | devices | seconds |"
    yield "|---|---|---|"
    method = settings_of(folder, "method=obs", "method.compensate=true").method
    structure = lab.facts.structure
    full = structure.full()

    def scored(model: nn.Module) -> None:
        UnitPruner(lab, method).scores(model, full, 0)

    def cut(model: nn.Module) -> None:
        compensator = lab._compensator(model, full)
        assert compensator.targets

    phases: dict[str, Callable[[nn.Module], Any]] = {
        "scores (obs)": scored,
        "compensation, the dense model's targets": cut,
        "recalibration": lambda model: lab.recalibrate(model, 8, 0),
        "finetuning, 100 steps": lambda model: lab.finetune(model, Training(1, 0, 100)),
        "validation": lab.validate,
    }
    for name, phase in phases.items():
        model = copy_of(lab.facts.model)
        seen = Seen(model)
        begin = time.perf_counter()
        phase(model)
        torch.cuda.synchronize()
        yield f"| {name} | {', '.join(sorted(seen.kinds))} | {time.perf_counter() - begin:.2f} |"
    yield from copies(lab)


def copies(lab: Lab) -> Iterator[str]:
    """Copies between host and device for each training step."""
    model = copy_of(lab.facts.model)
    lab.finetune(model, Training(1, 0, PROFILED_STEPS))
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as one:
        lab.finetune(model, Training(1, 0, PROFILED_STEPS))
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as two:
        lab.finetune(model, Training(1, 0, 2 * PROFILED_STEPS))
    yield ""
    for words, name in (("to the device", "Memcpy HtoD"), ("back to the host", "Memcpy DtoH")):
        more = count(two, name) - count(one, name)
        yield f"- A training step makes {more / PROFILED_STEPS:.2f} copies {words}."


def count(profiled: Any, name: str) -> int:
    return sum([event.count for event in profiled.key_averages() if event.key.startswith(name)])


def memory(folder: Path) -> Iterator[str]:
    """Training where the whole batch does not fit, and half of it does."""
    lab = laboratory(folder, "data.batch_size=512", "phases.train.epochs=0")

    def peak(parts: int) -> int:
        release_memory()
        torch.cuda.reset_peak_memory_stats()
        lab.finetune(copy_of(lab.facts.model), Training(1, 0, 4, accumulate=parts))
        return torch.cuda.max_memory_reserved()

    peak(1)
    whole = peak(1)
    total = torch.cuda.get_device_properties(0).total_memory
    yield "\n## Out of memory\n"
    yield f"- Whole batches take up to {whole / 1e6:.0f} MB, halves {peak(2) / 1e6:.0f} MB."
    # cuDNN gets along with less than it takes where there is much, so the limit falls
    for share in (0.5, 0.35, 0.25, 0.18, 0.12, 0.08):
        limit = f"With {share * whole / 1e6:.0f} MB"
        with limited(share * whole / total):
            for parts, name in ((1, "whole batches"), (2, "halves")):
                yield f"- {limit} {name} {attempted(partial(peak, parts))}."


def attempted(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except Exception as error:
        kind = type(error).__name__
        return f"end in {kind}, {'recognised' if out_of_memory(error) else 'NOT recognised'}"
    return "fit"


@contextmanager
def limited(fraction: float) -> Iterator[None]:
    """Inside the `with` block torch may take that share of the device's memory."""
    release_memory()
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def latency(folder: Path) -> Iterator[str]:
    """Latency by the wall-clock with synchronisation, and by CUDA events."""
    lab = laboratory(folder)
    example = lab.facts.prices.example
    yield "\n## Latency\n"
    yield "| model | wall-clock, ms | CUDA events, ms |"
    yield "|---|---|---|"
    for name, model in {"dense": lab.facts.model, "a copy": copy_of(lab.facts.model)}.items():
        wall = alone(lab.facts.prices.bench.conditions, model)[0].median
        yield f"| {name} | {wall:.3f} | {by_events(model, example):.3f} |"


@torch.no_grad()
def by_events(model: nn.Module, example: Any, repeats: int = 20) -> float:
    times = []
    for _ in range(repeats):
        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        example.call(model)
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)))
    return median(times)


STUDIES = {"single": "workers=1", "pair": "workers=2", "half": "trainer.precision=bf16-mixed"}


def studies(folder: Path) -> Iterator[str]:
    """One study in single precision, in half precision, and with two workers."""
    yield "\n## Studies\n"
    yield f"`python -m orchestrator {' '.join(STUDY)}` and what the first column says.\n"
    yield "| study | seconds | orchestration | dense | best under 50 % | best under 25 % |"
    yield "|---|---|---|---|---|---|"
    for name, option in STUDIES.items():
        begin = time.perf_counter()
        failure = run(folder, "job=search", f"study.name={name}", option)
        seconds = time.perf_counter() - begin
        yield failure or row(option, folder / "runs" / name, seconds)


def run(folder: Path, *words: str) -> str:
    """Empty, or what went wrong."""
    command = [sys.executable, "-m", "orchestrator", *STUDY, *where(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return f"failed ({done.returncode}): {' '.join(words)}: {done.stderr.strip()[-2000:]}"


def row(name: str, study: Path, seconds: float) -> str:
    summary = json.loads((study / "summary.json").read_text())
    front = table(study / "front.csv")
    cells = [name, f"{seconds:.0f}", f"{100 * summary['orchestration_share']:.1f} %"]
    cells.append(quality(table(study / "baselines.csv")[0]))
    for limit in (0.5, 0.25):
        fitting = [model for model in front if float(model["flops_ratio"]) <= limit]
        best = max(fitting, key=lambda model: float(model["test_mean"]), default=None)
        cells.append("none" if best is None else quality(best))
    return f"| {' | '.join(cells)} |"


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def quality(model: dict[str, str]) -> str:
    return f"{100 * float(model['test_mean']):.2f} ± {100 * float(model['test_std'] or 0.0):.2f} %"


def steps(folder: Path) -> Iterator[str]:
    """A training step in each precision."""
    lab = laboratory(folder)
    yield "\n## A training step\n"
    yield f"ResNet-50, the mean of {STEPS} steps after the first.\n"
    yield "| precision | ms |"
    yield "|---|---|"
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        lab = replace(lab, trainer=TrainerOptions({"precision": precision}))
        one = trained_seconds(lab, 1)
        more = trained_seconds(lab, 1 + STEPS)
        yield f"| {precision} | {1e3 * (more - one) / STEPS:.1f} |"


def trained_seconds(lab: Lab, steps: int) -> float:
    model = copy_of(lab.facts.model)
    begin = time.perf_counter()
    lab.finetune(model, Training(1, 0, steps))
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def exports(folder: Path) -> Iterator[str]:
    """The exported files, each loaded and measured on the CPU."""
    yield "\n## Exported for the CPU\n"
    study = next(iter(STUDIES))
    failure = run(folder, "job=export", f"study.name={study}", "select=smallest")
    if failure:
        yield failure
        return
    path = folder / "runs" / study / "best" / "exports.json"
    yield "| format | MB | largest difference | accuracy on validation data | failed |"
    yield "|---|---|---|---|---|"
    for entry in json.loads(path.read_text()):
        accuracy = entry["metrics"].get("accuracy", float("nan"))
        numbers = f"{entry['size_mb']:.2f} | {entry['largest_difference']:.2g} | {accuracy:.4f}"
        yield f"| {entry['format']} | {numbers} | {entry['reason']} |"


PARTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "placement": placement,
    "memory": memory,
    "latency": latency,
    "studies": studies,
    "exports": exports,
    "steps": steps,
}


if __name__ == "__main__":
    main()
