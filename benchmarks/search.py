"""Our search beside its rivals at equal CPU seconds: `python benchmarks/search.py --budgets 120 600
--workers 2`.

Four settings, each with one dense model that everything is cut from: a ResNet-20 and a VGG-16-BN on
Fashion-MNIST (14 x 14 and 32 x 32), a MobileNetV2 on Fashion-MNIST, a ResNet-50 on digits (32 x
32). All rivals have the same data, FLOPs targets, optimizer, batches, validation images and one
thread; seeds change the search, its batches and its draws. They are run side by side, seed by seed;
the seconds are those of the process (`time.process_time`), so that workers which wait for one
another do not count. What a rival's models are is decided on validation data; the test data is read
after the budget has ended.

Results go to --out as they come, and are not measured again on the same machine; the tables and the
pictures go into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import hydra
import torch
from machine import processor
from omegaconf import OmegaConf
from search_ladders import Found, ladder
from search_tables import Point, Result, write

from lightning_modules.data.contract import set_up
from orchestrator import settings as schema
from orchestrator.files import write_atomic
from orchestrator.jobs.explore import Exploration, parts_of
from orchestrator.load import load_pruned
from orchestrator.progress import Progress
from orchestrator.search.goals import goals_of
from orchestrator.search.lab.lab import Lab
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.pace import pacing
from orchestrator.search.pace.budget import Sharing, Speed
from orchestrator.search.pace.pacing import Clock, measure

ROOT = Path(__file__).resolve().parent.parent
FASHION = "data=fashion_mnist data.train_images=18000 data.val_fraction=0.1112 data.batch_size=64"
TARGETS = (0.5, 0.03125, 7)
"""Largest and smallest FLOPs ratio of all chains and ladders, and how many there are."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """`overrides` of the configuration make the problem and its dense model."""

    name: str
    title: str
    overrides: str


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "resnet20",
            "ResNet-20, Fashion-MNIST at 14 x 14",
            f"model=resnet_small model.blocks=3 {FASHION} data.size=14 phases.train.epochs=12",
        ),
        Setting(
            "vgg16",
            "VGG-16-BN of a quarter of the width, Fashion-MNIST at 32 x 32",
            f"model=vgg_small model.width=16 {FASHION} data.size=32 phases.train.epochs=8 "
            "phases.finetune.optimizer.lr=0.02",
        ),
        Setting(
            "mobilenet",
            "MobileNetV2, Fashion-MNIST at 28 x 28",
            f"model=torchvision model.name=mobilenet_v2 {FASHION} data.size=28 data.channels=3 "
            "phases=deep phases.train.epochs=12 phases.train.optimizer.lr=0.002 "
            "phases.finetune.optimizer.lr=0.005",
        ),
        Setting(
            "resnet50",
            "ResNet-50, digits at 32 x 32",
            "model=resnet50 data=digits_rgb data.batch_size=32 phases=deep phases.train.epochs=10",
        ),
    )
}
PLAIN = "phases.finetune.distillation=null"
UNMIXED = "phases.finetune.distillation.mixed=0"
WHOLE = "method.depth=false"
ALONE = f"search.lineage=false search.chain.targets=0 stopping=never space=per_group {PLAIN}"
SEARCHED = "search.chain.most_epochs=0.6 space.equal_loss=[0.0,1.0]"
SHORT = (
    "space.steps=[1,1] space.shapes=[one_shot] space.rounds=[1,1] phases.finetune.round_steps=120"
)
RIVALS = {
    "naive TPE": f"sampler=tpe {ALONE} {SHORT}",
    "naive NSGA-II": f"sampler=nsga2 {ALONE} {SHORT}",
    "torch-pruning global": PLAIN,
    "torch-pruning uniform": PLAIN,
    "chain": PLAIN,
    "chain + distillation": UNMIXED,
    "chain + distillation, mixed": "",
    "chain + distillation, fewer blocks": UNMIXED,
    "ours, short, then TPE": SEARCHED,
    "ours, short, then NSGA-II": f"sampler=nsga2 {SEARCHED}",
    "ours, short, then GP": f"sampler=gp {SEARCHED}",
    "ours, short, then TPE by stages": f"space=hierarchical {SEARCHED}",
    "ours, global ranking": "method.scope=global",
    "ours, undistilled": PLAIN,
    "ours, unmixed": UNMIXED,
    "ours, mixed": "phases.finetune.distillation.mixed=6",
    "ours, compensated": "method.compensate=true",
    "ours, all blocks": "",
    "ours": "",
}
"""Each as overrides of our configuration; those of torch-pruning use its pruner and only our
training. Only those of `FEWER` drop whole blocks.
"""
FEWER = ("ours", "ours, compensated", "chain + distillation, fewer blocks")
EQUAL_STEPS = (
    "chain",
    "chain + distillation",
    "chain + distillation, mixed",
    "chain + distillation, fewer blocks",
)
"""Rivals whose targets get the same steps in place of the same time."""
RETIRED = ("ours, screened, equal steps", "ours, screened", "ours, tilted")
"""Options that were measured, did not pay and are gone; their rows stay in the tables."""


class SameSteps(Sharing):
    """Every target of the chain gets the same number of steps."""

    def steps(self, speed: Speed, left: float, ratio: float, rungs: Sequence[float]) -> float:
        even = (left - sum(map(speed.beside_at, rungs))) / sum(map(speed.step_at, rungs))
        return min(self.most, max(0.0, even))


CHAINED = (
    f"search.chain.targets={TARGETS[2]} search.chain.largest={TARGETS[0]} "
    f"search.chain.smallest={TARGETS[1]} "
    f"space.flops_ratio=[{TARGETS[1]},0.8] space.equal_loss=[0.0,0.0] space.steps=[1,1] "
    "space.shapes=[one_shot] "
    "search.chain.most_epochs=1000 stopping=never"
)


@dataclasses.dataclass(frozen=True)
class Job:
    setting: str
    rival: str
    budget: float
    seed: int


def composed(words: Sequence[str]) -> schema.Settings:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        found = OmegaConf.to_container(hydra.compose("config", list(words)), resolve=True)
    assert isinstance(found, dict)
    return schema.load({str(key): value for key, value in found.items()})


def common(baselines: Path, out: Path) -> list[str]:
    where = [
        f"study.baselines={baselines}",
        f"study.out={out}",
        "tracking=none",
        "device=cpu",
        "threads=1",
    ]
    return [*where, "memory_format=contiguous", "phases.finetune.recalibration_batches=4"]


def dense(setting: str, baselines: Path) -> Path:
    """The weights of the setting's dense model, trained where they are not there yet."""
    with tempfile.TemporaryDirectory() as out:
        settings = composed([*SETTINGS[setting].overrides.split(), *common(baselines, Path(out))])
        data = settings.data.build()
        set_up(data)
        with open(os.devnull, "w") as silent:
            prepare(settings, data, Progress(silent))
    return baselines / settings.dense_digest() / "weights.safetensors"


def run(job: Job, baselines: Path) -> Result:
    """One rival with one seed, from the dense weights to the test accuracy of its models."""
    torch.set_num_threads(1)
    weights = baselines / f"{job.setting}.safetensors"
    how = RIVALS[job.rival]
    chain = "" if "targets=0" in how else CHAINED
    if job.rival in EQUAL_STEPS:
        pacing.Sharing = SameSteps  # type: ignore[attr-defined]  # of this process, which runs one job
    with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as silent:
        words = [
            *SETTINGS[job.setting].overrides.split(),
            "phases.train.epochs=0",
            f"phases.train.checkpoint={weights}",
            *common(baselines, Path(out)),
            *chain.split(),
            *how.split(),
            f"seed={job.seed}",
            f"study.budget={job.budget:g}s",
            *([] if job.rival in FEWER else [WHOLE]),
        ]
        settings = composed(words)
        settings.study.folder.mkdir(parents=True, exist_ok=True)
        data = settings.data.build()
        set_up(data)
        progress = Progress(silent)
        final = prepare(settings, data, progress)  # shared by all: data, dense outputs, structure
        step_ms = 1000.0 * measure(final.lab, [], time.process_time).step_at(1.0)
        begin = time.process_time()
        if job.rival.startswith("torch-pruning"):
            whole = job.rival.endswith("global")
            models = list(
                ladder(final.lab, targets_of(*TARGETS), whole, job.budget, job.seed, begin)
            )
        else:
            models = list(studied(settings, final.lab, progress, begin))
        seconds = time.process_time() - begin
        points = [
            Point(ratio, validation, final.test(model).metrics["accuracy"])
            for ratio, validation, model in models
        ]
        shares = {name: round(value, 2) for name, value in progress.seconds.items()}
    today = date.today().isoformat()
    step = round(step_ms, 1)
    return Result(
        job.setting,
        job.rival,
        job.budget,
        job.seed,
        seconds,
        points,
        shares,
        here(),
        today,
        step,
    )


def here() -> str:
    """Processor, its widest instructions and torch: rows of different machines are not compared."""
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def studied(
    settings: schema.Settings, lab: Lab, progress: Progress, begin: float
) -> Iterator[Found]:
    """What the configuration finds by the search itself, without the confirmation that follows it
    for a user.
    """
    parts = parts_of(settings, goals_of(settings))
    clock = Clock(begin, time.process_time, confirming=0.0)
    with parts.leases.leading():
        explored = Exploration(settings, lab, parts, progress).run(clock)
    for row in explored.trials:
        if row.state == "completed" and row.quality is not None:
            model = load_pruned(explored.store.of(row.number))
            yield row.ratios["flops"], row.quality, model


def targets_of(largest: float, smallest: float, rungs: int) -> list[float]:
    return [largest * (smallest / largest) ** (rung / (rungs - 1)) for rung in range(rungs)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=[120.0, 600.0], help="CPU seconds of a search"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, default=1, help="processes of one thread each; at most one per core"
    )
    parser.add_argument("--baselines", type=Path, default=Path("baselines"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "search.json")
    parser.add_argument(
        "--tables", action="store_true", help="write the document from what is there, run nothing"
    )
    given = parser.parse_args(arguments)
    results = read(given.out)
    jobs = [
        Job(setting, rival, budget, seed)
        for budget in given.budgets
        for seed in range(1, given.seeds + 1)
        for setting in given.settings
        for rival in given.rivals
    ]
    there = {(r.setting, r.rival, r.budget, r.seed) for r in results if r.machine == here()}
    waiting = [job for job in jobs if dataclasses.astuple(job) not in there]
    if not given.tables:
        given.baselines.mkdir(parents=True, exist_ok=True)
        for setting in dict.fromkeys(job.setting for job in waiting):
            kept = given.baselines / f"{setting}.safetensors"
            if not kept.exists():
                write_atomic(kept, dense(setting, given.baselines).read_bytes())
        for result in worked(waiting, given.baselines, given.workers):
            results.append(result)
            keep(given.out, results)
            print(result.line(), flush=True)
    titles = {name: setting.title for name, setting in SETTINGS.items()}
    write(ROOT / "docs" / "benchmarks.md", results, titles, [*RIVALS, *RETIRED])
    return 0


def worked(jobs: Sequence[Job], baselines: Path, workers: int) -> Iterator[Result]:
    """Results as they come; workers are new processes, so that nothing is inherited."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(run, job, baselines) for job in jobs]):
            yield future.result()


def read(path: Path) -> list[Result]:
    return (
        [Result.from_json(row) for row in json.loads(path.read_text())["results"]]
        if path.exists()
        else []
    )


def keep(path: Path, results: Sequence[Result]) -> None:
    write_atomic(
        path, json.dumps({"results": [dataclasses.asdict(result) for result in results]}, indent=0)
    )


if __name__ == "__main__":
    sys.exit(main())
