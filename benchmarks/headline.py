"""The headline: how much smaller and faster at kept accuracy: `python benchmarks/headline.py`.

Each case is a search as a user would give it, with widths that suit ONNX Runtime, and the choice of
the best model with at most a fifth of the parameters and a third of the latency. The search sees
validation data, the table is on test data. The latency is that of the ONNX file in ONNX Runtime at
batch 1, in turns with the dense model's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine

from orchestrator.results.rows import ConfirmedRow, read_csv

CASES = {
    "ResNet-50, digits at 32 px": ["+experiment=resnet50", "phases.confirm.baselines=[]"],
    "VGG-16-BN of a quarter of the width, Fashion-MNIST at 32 px": [
        *("model=vgg_small", "model.width=16", "data=fashion_mnist", "data.size=32"),
        *("data.train_images=16000", "phases.train.epochs=8", "phases.finetune.optimizer.lr=0.02"),
        *("search.chain.smallest=0.08", "phases.confirm.baselines=[]"),
        *("phases.finetune.round_steps=120", "phases.confirm.max_models=4", "study.n_trials=8"),
    ],
}
FOR_THE_ENGINE = ["method.round_to=8", "objectives.engine=onnxruntime", "tracking=none"]
WITHIN = [
    "job=export",
    "job.formats=[onnx]",
    "select=max_quality",
    "select.max_params_ratio=0.2",
    "+select.max_latency_ms_ratio=0.334",
]


@dataclass(frozen=True)
class Outcome:
    """The chosen model of a study beside its dense one."""

    dense: ConfirmedRow
    chosen: ConfirmedRow
    onnx: dict[str, Any]

    def line(self, case: str) -> str:
        ratios = self.chosen.ratios
        faster = self.onnx["dense_latency_ms"] / self.onnx["latency_ms"]
        difference = self.chosen.test_mean - self.dense.test_mean
        return (
            f"| {case} | {self.dense.test_mean:.4f} ± {self.dense.test_std:.4f} "
            f"| {self.chosen.test_mean:.4f} ± {self.chosen.test_std:.4f} ({difference:+.4f}) "
            f"| {ratios['flops']:.1%} | {ratios['params']:.1%} | {ratios['size_mb']:.1%} "
            f"| {self.onnx['dense_latency_ms']:.2f} | {self.onnx['latency_ms']:.2f} "
            f"| {faster:.1f}x |"
        )


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--out", type=Path, default=Path("headline"), help="folder of the runs")
    arguments.add_argument("--baselines", type=Path, help="folder of dense models to use again")
    arguments.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    arguments.add_argument("--threads", type=int, default=1)
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}; {chosen.threads} threads\n")
    print(
        "| case | dense | pruned | FLOPs | params | size | dense, ms | pruned, ms | faster |\n"
        "|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for number, (case, words) in enumerate(CASES.items()):
        if case in chosen.only:
            print(outcome(f"case{number}", words, chosen).line(case), flush=True)


def outcome(name: str, words: list[str], chosen: argparse.Namespace) -> Outcome:
    common = [*words, *FOR_THE_ENGINE, f"study.name={name}", f"threads={chosen.threads}"]
    if chosen.baselines is not None:
        common.append(f"study.baselines={chosen.baselines.resolve()}")
    run(chosen.out, name, common)
    run(chosen.out, f"{name}-export", [*common, *WITHIN])
    folder = chosen.out / "runs" / name
    (onnx,) = json.loads((folder / "best" / "exports.json").read_text())
    front = {row.name: row for row in read_csv(folder / "front.csv", ConfirmedRow)}
    (dense, *_) = read_csv(folder / "baselines.csv", ConfirmedRow)
    return Outcome(dense, front[taken(folder)], onnx)


def taken(folder: Path) -> str:
    """The name of the model that the export took: the one with its weights."""
    best = (folder / "best" / "weights.safetensors").read_bytes()
    for path in (folder / "models").glob("*/weights.safetensors"):
        if path.read_bytes() == best:
            return path.parent.name
    raise SystemExit(f"{folder / 'best'} is of no model in {folder / 'models'}")


def run(out: Path, name: str, words: list[str]) -> None:
    """One command of the product; its output goes to a file."""
    with (out / f"{name}.log").open("w") as log:
        command = [sys.executable, "-m", "orchestrator", *words]
        done = subprocess.run(command, cwd=out, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{name} failed; see {out / name}.log")


if __name__ == "__main__":
    main()
