"""Every method of conf/method on one net and data set: `python benchmarks/methods.py --seeds 3`.

A ResNet-20 on Fashion-MNIST at 14 x 14: 38,000 training, 2,000 validation, 10,000 test images. Each
seed trains one dense model (kept in --baselines), which all methods prune; each is then finetuned
for the same number of optimizer steps, without distillation. Methods with several pruning steps,
stages or a penalty share these steps out. Everything runs through the orchestrator's own
configuration, problem, spaces and evaluator, one thread per worker. With the defaults some 260 jobs
of about 9 s and three dense trainings of a minute: 20 to 25 minutes on two idle cores.

Results go to --out as they come, and are not measured again; the tables go into docs/methods.md
between its markers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import hydra
import torch
from machine import processor
from methods_cases import DENSE, ROUNDS, SKIPPED, Case, cases
from methods_tables import Row, report, show, tables
from omegaconf import OmegaConf
from torch import nn

from lightning_modules.data.contract import set_up
from lightning_modules.recipe import Recipe
from orchestrator import settings as schema
from orchestrator.files import write_atomic
from orchestrator.load import load_int8, load_pruned
from orchestrator.progress import Progress
from orchestrator.search.lab.lab import FinalLab, Lab, Training
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.space import Choices, SearchContext
from orchestrator.search.trials.evaluate import Evaluator, trial_recipe
from orchestrator.search.trials.methods import check_method, prepare_method
from orchestrator.seeds import seed_of

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "methods.md"
COMMON = [
    "model=resnet_small",
    "model.blocks=3",
    "model.width=16",
    "data=fashion_mnist",
    "data.size=14",
    "data.batch_size=64",
    "data.train_images=40000",
    "data.val_fraction=0.05",
    "phases.finetune.distillation=null",
    "search.lineage=false",
    "tracking=none",
    "device=cpu",
    "threads=1",
]
BY_CHANCE = {"_target_": "lightning_modules.pruning.criteria.Random"}


@dataclass(frozen=True)
class Run:
    """What all rows of one file have in common."""

    steps: int
    epochs: int
    baselines: str

    def settings(self, case: Case, seed: int, out: str) -> schema.Settings:
        words = [
            *COMMON,
            f"method={case.method}",
            *shlex.split(case.overrides),
            f"seed={seed}",
            f"study.out={out}",
            f"study.baselines={self.baselines}",
            f"phases.train.epochs={self.epochs}",
            f"phases.finetune.round_steps={self.steps // ROUNDS}",
        ]
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            composed = OmegaConf.to_container(hydra.compose("config", words), resolve=True)
        assert isinstance(composed, dict)
        stage = composed["method"] if case.blind else None
        while stage is not None:
            stage["criterion"], stage = BY_CHANCE, stage.get("then")
        return schema.load({str(key): value for key, value in composed.items()})


@dataclass(frozen=True, kw_only=True)
class Watched(Lab):
    """A laboratory that validates after each recalibration: right after a pruning step, before the
    finetuning.
    """

    seen: list[float] = field(default_factory=list)

    def recalibrate(self, model: nn.Module, count: int, seed: int) -> None:
        super().recalibrate(model, count, seed)
        self.seen.append(self.validate(model)["accuracy"])


def measure(run: Run, case: Case, seed: int) -> list[Row]:
    """One job of a worker: the dense model alone gives two rows."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as silent:
        settings = run.settings(case, seed, folder)
        progress = Progress(silent)
        final = prepare(settings, data_of(json.dumps(settings.data.to_json())), progress)
        plain = final.lab
        lab = Watched(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)})
        if case.table == "dense":
            return dense_rows(final, seed, begin)
        space = settings.space.build()
        check_method(settings, space)
        method = prepare_method(lab, settings.method)
        context = method.context(lab, None)
        choices = Choices(space, settings.method, {method.settings.name: context})
        plan = choices.propose(context, parameters(case, choices, context))
        store = PlanStore(Path(folder), lab.facts)
        evaluator = Evaluator(lab, trial_recipe(settings, lab), store)
        measured = evaluator(plan, 0, lambda round_, ratio, metrics: None)
        assert measured.state == "completed", measured.reason
        assert measured.trained_rounds == ROUNDS, (
            f"{case.key} was finetuned for {measured.trained_rounds} rounds, not {ROUNDS}"
        )
        model = load_pruned(store.of(0))
        file = load_int8(store.of(0)) if plan.export else model
        tested = final.test(file).metrics
        return [
            Row(
                case.key,
                seed,
                lab.seen[-1],
                tested["accuracy"],
                measured.ratios["flops"],
                measured.ratios["effective_flops"],
                sparsity(lab, model),
                progress.seconds.get("scores", 0.0),
                time.perf_counter() - begin,
            )
        ]


def dense_rows(final: FinalLab, seed: int, begin: float) -> list[Row]:
    """The dense model as it is, and finetuned like the pruned ones."""
    lab = final.lab
    alone, longer = (case.key for case in DENSE)
    validated, trained = lab.facts.dense_metrics["accuracy"], time.perf_counter() - begin
    first = Row(
        alone, seed, validated, final.test(lab.facts.model).metrics["accuracy"], seconds=trained
    )
    begin = time.perf_counter()
    lab.finetune(lab.facts.model, Training(ROUNDS, seed_of(seed, 2, 0)))
    after = final.test(lab.facts.model).metrics["accuracy"]
    return [first, Row(longer, seed, validated, after, seconds=time.perf_counter() - begin)]


@functools.cache
def data_of(recipe: str) -> Any:
    """The data module, read once per worker."""
    data = Recipe.from_json(json.loads(recipe)).build()
    set_up(data)
    return data


def parameters(case: Case, choices: Choices, context: SearchContext) -> dict[str, Any]:
    """Those of a rung of the opening chain at the case's target, with what the case says itself."""
    found = choices.chain(context, case.flops_ratio)
    if "flops_ratio" in found:  # the chain of a method with two stages shares the target out
        found["flops_ratio"] = case.flops_ratio
    if "blocks" in found:
        found["blocks"] = most_blocks(context, case.flops_ratio)
    return {**found, **dict(case.params)}


def most_blocks(context: SearchContext, flops_ratio: float) -> int:
    """How many whole blocks can go, the least important first, before the target is met; channels
    do the rest.
    """
    sizes = context.structure.sizes
    for dropped in range(1, len(context.blocks) + 1):
        sizes[context.blocks[dropped - 1]] = 0
        if context.macs(sizes) < flops_ratio * context.dense_macs:
            return dropped - 1
    return len(context.blocks)


def sparsity(lab: Lab, model: nn.Module) -> float:
    dense, left = dict(lab.facts.model.named_parameters()), dict(model.named_parameters())
    kept = sum(
        int(torch.count_nonzero(left[name])) for name in lab.facts.weight_names if name in left
    )
    return 1.0 - kept / sum(dense[name].numel() for name in lab.facts.weight_names)


def main() -> int:
    chosen = arguments()
    run = Run(chosen.steps, chosen.epochs, str(chosen.baselines))
    held = stored(chosen, run)
    if not chosen.report_only:
        todo = jobs(chosen, held)
        failed = carry_out(todo, run, chosen, held)
        if failed:
            print(
                f"{failed} of {len(todo)} jobs failed; give the same command again to repeat them",
                file=sys.stderr,
            )
            return 1
    for lines in tables([Row(**row) for row in held["rows"]]).values():
        show(lines)
    if chosen.document is not None:
        report(chosen.document, held)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="dense trainings, each pruned by every method"
    )
    parser.add_argument(
        "--steps", type=int, default=240, help=f"of finetuning, a multiple of {ROUNDS}"
    )
    parser.add_argument("--epochs", type=int, default=3, help="of dense training")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "methods.json")
    parser.add_argument(
        "--baselines", type=Path, default=ROOT / "baselines", help="folder of the dense models"
    )
    parser.add_argument(
        "--methods", default="", help="names of methods, comma between: those and their references"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="tables of what is there; measures nothing"
    )
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="whose tables are written")
    parser.add_argument(
        "--no-document", dest="document", action="store_const", const=None, help="print tables only"
    )
    chosen = parser.parse_args()
    if chosen.steps < ROUNDS or chosen.steps % ROUNDS:
        parser.error(f"--steps must be a multiple of {ROUNDS}; got {chosen.steps}")
    known = {case.method for case in cases()}
    if unknown := sorted(set(filter(None, chosen.methods.split(","))) - known):
        parser.error(
            f"--methods names unknown methods {unknown}; known: {', '.join(sorted(known))}"
        )
    everything = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    if left := sorted(everything - {case.method for case in cases()} - set(SKIPPED)):
        parser.error(
            f"every file of conf/method has a row or a reason in SKIPPED; {left} have neither"
        )
    return chosen


def stored(chosen: argparse.Namespace, run: Run) -> dict[str, Any]:
    """The results so far; those of other steps or epochs are not mixed with."""
    same = {"steps": run.steps, "epochs": run.epochs}
    if chosen.report_only and not chosen.out.exists():
        raise SystemExit(
            f"--report-only needs results; {chosen.out} does not exist: leave it out to measure"
        )
    if chosen.out.exists():
        held: dict[str, Any] = json.loads(chosen.out.read_text())
        if chosen.report_only or held["run"] == same:
            return held
        raise SystemExit(
            f"{chosen.out} holds results of {held['run']}, not of {same}; take another --out"
        )
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "workers": chosen.workers,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    command = shlex.join(["python", "benchmarks/methods.py", *sys.argv[1:]])
    return {
        "run": same,
        "machine": machine,
        "command": command,
        "date": date.today().isoformat(),
        "rows": [],
    }


def jobs(chosen: argparse.Namespace, held: dict[str, Any]) -> list[tuple[Case, int]]:
    """What is not there yet: the dense models, then every case seed by seed."""
    there = {(row["case"], row["seed"]) for row in held["rows"]}
    names = set(filter(None, chosen.methods.split(",")))
    mine = [case for case in cases() if not names or case.method in names]
    references = {case.reference for case in mine}
    mine = [case for case in cases() if case in mine or case.key in references]
    wanted = [(DENSE[0], seed) for seed in range(chosen.seeds)]
    wanted += [(case, seed) for seed in range(chosen.seeds) for case in mine]
    return [(case, seed) for case, seed in wanted if (case.key, seed) not in there]


def carry_out(
    todo: list[tuple[Case, int]], run: Run, chosen: argparse.Namespace, held: dict[str, Any]
) -> int:
    """Run the jobs and store each row as it comes; the number of jobs that failed."""
    done = failed = 0
    begin = time.perf_counter()
    with ProcessPoolExecutor(
        chosen.workers, multiprocessing.get_context("spawn"), one_thread
    ) as pool:
        for case, seed, future in in_turn(pool, run, todo):
            done += 1
            try:
                rows = future.result()
            except Exception as error:
                failed += 1
                print(
                    f"{case.key}, seed {seed} failed: {error.__cause__ or error}",
                    file=sys.stderr,
                    flush=True,
                )
                continue
            held["rows"] += [dataclasses.asdict(row) for row in rows]
            write_atomic(chosen.out, json.dumps(held, indent=1) + "\n")
            left = (time.perf_counter() - begin) / done * (len(todo) - done)
            for row in rows:
                print(
                    f"[{done}/{len(todo)}, {left / 60:.0f} min left] {row.case}, seed {seed}: "
                    f"before {row.before:.4f}, "
                    f"test {row.after:.4f}, MACs {row.macs:.3f}, effective "
                    f"{row.effective_macs:.3f}, "
                    f"sparsity {row.sparsity:.3f}, {row.seconds:.1f} s",
                    flush=True,
                )
    return failed


def in_turn(
    pool: ProcessPoolExecutor, run: Run, todo: list[tuple[Case, int]]
) -> Iterator[tuple[Case, int, Future[list[Row]]]]:
    """Jobs as they end; the dense models before those that are cut from them."""
    for some in (
        [j for j in todo if j[0].table == "dense"],
        [j for j in todo if j[0].table != "dense"],
    ):
        futures = {pool.submit(measure, run, case, seed): (case, seed) for case, seed in some}
        for future in as_completed(futures):
            yield *futures[future], future


def one_thread() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
