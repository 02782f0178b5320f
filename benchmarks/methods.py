"""Every method of conf/method on one net and data set: `python benchmarks/methods.py --seeds 3`.

A ResNet-20 on Fashion-MNIST at 14 x 14: 38,000 training, 2,000 validation, 10,000 test images. Each seed trains one
dense model (kept in --baselines), which all methods prune; each is then finetuned for the same number of optimizer
steps, without distillation. Methods with several pruning steps, stages or a penalty share these steps out. Everything
runs through the orchestrator's own configuration, problem, spaces and evaluator, one thread per worker. With the
defaults some 260 jobs of about 9 s and three dense trainings of a minute: 20 to 25 minutes on two idle cores.

Results go to --out as they come, and are not measured again; the tables go into docs/methods.md between its markers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import hydra
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_modules.recipe import Recipe
from orchestrator import settings as schema
from orchestrator.files import write_atomic
from orchestrator.load import load_int8, load_pruned
from orchestrator.progress import Progress
from orchestrator.search.prepare import prepare
from orchestrator.search.problem import Problem, seed_of
from orchestrator.search.space import Choices, Terrain
from orchestrator.search.space.choices import ACTIVATION
from orchestrator.search.trials.evaluate import Evaluator
from orchestrator.search.trials.methods import check_method, prepare_method

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "methods.md"
UNITS = 4
"""Of finetuning, a quarter of the steps each: what several pruning steps, stages or a penalty share."""
COMMON = [
    "model=resnet_small", "model.blocks=3", "model.width=16", "data=fashion_mnist", "data.size=14",
    "data.batch_size=64", "data.train_images=40000", "data.val_fraction=0.05", "phases.finetune.distillation=null",
    "search.lineage=false", "tracking=none", "device=cpu", "threads=1",
]  # fmt: skip
# fmt: off
CRITERIA = (
    "random", "l1", "l2", "linf", "lamp", "global_lamp", "isomorphic", "fpgm", "cosine", "bn_scale", "activation",
    "apoz", "rank", "correlation", "taylor", "fisher", "gradient", "movement", "snip", "grasp", "synflow", "ablation",
)
# fmt: on
ONCE = f"space.shapes=[one_shot] space.steps=[1,1] space.units=[{UNITS},{UNITS}]"
OFTEN = f"space.shapes=[one_shot] space.steps=[{UNITS},{UNITS}] space.units=[1,1]"
HALF = "space.shapes=[one_shot] space.steps=[1,1] space.units=[2,2]"
BY_CHANCE = {"_target_": "lightning_modules.pruning.criteria.Random"}
SKIPPED = {
    "search": "a choice among methods, not a method",
    "head_dim": "narrows attention heads; this net has none",
}


@dataclass(frozen=True)
class Case:
    """One row: a method at one target; `params` are what the space is told beside the chain's parameters.

    `reference` is the row with random scores that it is measured against.
    """

    name: str
    method: str
    table: str
    target: str
    reference: str
    flops_ratio: float = 0.5
    overrides: str = ONCE
    params: tuple[tuple[str, Any], ...] = ()
    blind: bool = False  # random scores in the place of the method's

    @property
    def key(self) -> str:
        return f"{self.name} @ {self.target}"


def cases() -> list[Case]:
    """All rows, the random ones of each table first."""
    found = []
    ways = dict.fromkeys(CRITERIA, ONCE) | {"depth": ONCE, "soft_filter": OFTEN}
    ways |= {name: HALF for name in ("slimming", "group_lasso", "growing")}  # the other half goes under the penalty
    for target, ratio in (("50 % MACs", 0.5), ("20 % MACs", 0.2)):
        found += [
            Case(name, name, "units", target, f"random @ {target}", ratio, f"space=allocation {how}")
            for name, how in ways.items()
        ]
    most = (("threshold", 0.9),)
    singles = ["random", "l1", "lamp", "taylor", "fisher", "gradient", "movement", "snip", "grasp", "synflow"]
    sparse = [f"weight_{name}" for name in singles] + ["rigl", "set", "surgery"]
    found += [
        Case(
            name, name, "weights", "90 % sparsity", "weight_random @ 90 % sparsity", 0.1, f"space=uniform {ONCE}", most
        )
        for name in sparse
    ]
    ranked = f"space=uniform {ONCE} method.scope=global method.normalize=false"
    found += [
        Case(f"{name}, global", name, "weights", "90 % sparsity", "weight_random @ 90 % sparsity", 0.1, ranked, most)
        for name in ("weight_l1",)
    ]
    found += by_chance("block", "90 % sparsity", "patterns", f"space=uniform {ONCE}", most)
    for name, share in (("nm_2_4", "2 of 4"), ("nm_1_4", "1 of 4")):
        found += by_chance(name, f"{share} weights", "patterns", f"space=patterns {ONCE}", (), 0.0)
    both = "50 % MACs, then "
    found += by_chance("hybrid", f"{both}80 % sparsity", "both", HALF, (("then.sparsity", 0.8),))
    found += by_chance("hybrid_nm", f"{both}2 of 4 weights", "both", HALF, (("then.applied", True),))
    for kind, level_of, words in (("topk", 0.5, "half of the activations"), ("threshold", 0.3, "activations over 0.3")):
        name, target = f"activation_{kind}", f"50 % MACs, {words}"
        found += by_chance(name, target, "both", f"space=allocation {ONCE}", ((ACTIVATION, level_of),))
    found += by_chance("int8", "50 % MACs, int8", "both", f"space=allocation {ONCE}")
    return found


def by_chance(
    name: str, target: str, table: str, overrides: str, params: tuple[tuple[str, Any], ...] = (), ratio: float = 0.5
) -> list[Case]:
    """A method, and before it the same with random scores in every stage."""
    reference = f"{name}, random"
    same = (table, target, f"{reference} @ {target}", ratio, overrides, params)
    return [Case(reference, name, *same, blind=True), Case(name, name, *same)]


DENSE = (
    Case("dense", "l1", "dense", "dense", ""),
    Case("dense, finetuned as long", "l1", "dense", "dense", ""),
)


@dataclass(frozen=True)
class Run:
    """What all rows of one file have in common."""

    steps: int
    epochs: int
    baselines: str

    def settings(self, case: Case, seed: int, out: str) -> schema.Settings:
        words = [
            *COMMON, f"method={case.method}", *shlex.split(case.overrides), f"seed={seed}", f"study.out={out}",
            f"study.baselines={self.baselines}", f"phases.train.epochs={self.epochs}",
            f"phases.finetune.unit_steps={self.steps // UNITS}",
        ]  # fmt: skip
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            composed = OmegaConf.to_container(hydra.compose("config", words), resolve=True)
        assert isinstance(composed, dict)
        stage = composed["method"] if case.blind else None
        while stage is not None:
            stage["criterion"], stage = BY_CHANCE, stage.get("then")
        return schema.load({str(key): value for key, value in composed.items()})


@dataclass(frozen=True)
class Row:
    """Accuracies are fractions: `before` finetuning on validation, `after` it on test data; ratios to the dense model.

    `sparsity` counts the weights that MACs go through, removed ones included.
    """

    case: str
    seed: int
    before: float
    after: float
    macs: float = 1.0
    effective_macs: float = 1.0
    sparsity: float = 0.0
    scoring_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Watched(Problem):
    """A problem that validates after each recalibration: right after a pruning step, before the finetuning."""

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
        plain = prepare(settings, data_of(json.dumps(settings.data.to_json())), progress)
        problem = Watched(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)})
        if case.table == "dense":
            return dense_rows(problem, seed, begin)
        space = settings.space.build()
        check_method(settings, space)
        method = prepare_method(problem, settings.method)
        terrain = method.terrain(problem, None)
        choices = Choices(space, settings.method, {method.settings.name: terrain})
        proposal = choices.propose(terrain, parameters(case, choices, terrain))
        evaluator = Evaluator(problem, {method.settings.name: method}, Path(folder))
        found = evaluator(proposal, 0, lambda unit, ratio, metrics: None)
        assert found.state == "completed", found.reason
        assert found.trained_units == UNITS, f"{case.key} was finetuned for {found.trained_units} units, not {UNITS}"
        model = load_pruned(Path(folder) / "0")
        tested = problem.test(load_int8(Path(folder) / "0") if proposal.int8 else model)
        return [
            Row(
                case.key,
                seed,
                problem.seen[-1],
                tested["accuracy"],
                found.ratios["flops"],
                found.ratios["effective_flops"],
                sparsity(problem, model),
                progress.seconds.get("scores", 0.0),
                time.perf_counter() - begin,
            )
        ]


def dense_rows(problem: Problem, seed: int, begin: float) -> list[Row]:
    """The dense model as it is, and finetuned like the pruned ones."""
    alone, longer = (case.key for case in DENSE)
    validated, trained = problem.dense["accuracy"], time.perf_counter() - begin
    first = Row(alone, seed, validated, problem.test(problem.model)["accuracy"], seconds=trained)
    begin = time.perf_counter()
    problem.finetune(problem.model, UNITS, seed_of(seed, 2, 0))
    after = problem.test(problem.model)["accuracy"]
    return [first, Row(longer, seed, validated, after, seconds=time.perf_counter() - begin)]


@functools.cache
def data_of(recipe: str) -> Any:
    """The data module, read once per worker."""
    data = Recipe.from_json(json.loads(recipe)).build()
    data.setup()
    return data


def parameters(case: Case, choices: Choices, terrain: Terrain) -> dict[str, Any]:
    """Those of a rung of the opening chain at the case's target, with what the case says itself."""
    found = choices.chain(terrain, case.flops_ratio, 0.0)
    if "flops_ratio" in found:  # the chain of a method with two stages shares the target out
        found["flops_ratio"] = case.flops_ratio
    if "blocks" in found:
        found["blocks"] = most_blocks(terrain, case.flops_ratio)
    return {**found, **dict(case.params)}


def most_blocks(terrain: Terrain, flops_ratio: float) -> int:
    """How many whole blocks can go, the least important first, before the target is met; channels do the rest."""
    sizes = terrain.structure.sizes
    for dropped in range(1, len(terrain.blocks) + 1):
        sizes[terrain.blocks[dropped - 1]] = 0
        if terrain.macs(sizes) < flops_ratio * terrain.dense_macs:
            return dropped - 1
    return len(terrain.blocks)


def sparsity(problem: Problem, model: nn.Module) -> float:
    dense, left = dict(problem.model.named_parameters()), dict(model.named_parameters())
    kept = sum(int(torch.count_nonzero(left[name])) for name in problem.weight_names if name in left)
    return 1.0 - kept / sum(dense[name].numel() for name in problem.weight_names)


# ---- the table of results


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over the seeds; `apart` is the difference to the reference's mean, over the pooled
    spread where there is one."""

    seeds: int
    before: tuple[float, float]
    after: tuple[float, float]
    apart: tuple[float, float | None] | None
    rows: Sequence[Row]

    def mean(self, name: str) -> float:
        return statistics.fmean(getattr(row, name) for row in self.rows)


def summaries(rows: Sequence[Row], wanted: Sequence[Case]) -> dict[str, Summary]:
    found: dict[str, Summary] = {}
    for case in wanted:
        mine = [row for row in rows if row.case == case.key]
        others = [row for row in rows if row.case == case.reference]
        if not mine:
            continue
        apart = difference([r.after for r in mine], [r.after for r in others]) if others else None
        found[case.key] = Summary(
            len(mine), spread([r.before for r in mine]), spread([r.after for r in mine]), apart, mine
        )
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def difference(mine: Sequence[float], others: Sequence[float]) -> tuple[float, float | None]:
    """Of the means, and that over the root of the mean variance of both."""
    (a, s), (b, t) = spread(mine), spread(others)
    pooled = ((s * s + t * t) / 2) ** 0.5
    return a - b, (a - b) / pooled if min(len(mine), len(others)) > 1 and pooled > 0.0 else None


def percent(value: tuple[float, float], seeds: int) -> str:
    return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}" if seeds > 1 else f"{100 * value[0]:.1f}"


def beside(apart: tuple[float, float | None] | None) -> str:
    """`+1.2 (+2.4 s)`: points, then spreads; worse than the reference beyond the spread stands out."""
    if apart is None:
        return ""
    points, spreads = apart
    if spreads is None:
        return f"{100 * points:+.1f}"
    text = f"{100 * points:+.1f} ({spreads:+.1f} s)"
    return f"**{text} worse**" if spreads < -1.0 else text


def cells(found: Summary | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    return [percent(found.before, found.seeds), percent(found.after, found.seeds), beside(found.apart)]


def unit_table(found: dict[str, Summary], wanted: Sequence[Case]) -> list[list[str]]:
    """One row per method with both targets, best at the smaller one first."""
    targets = list(dict.fromkeys(case.target for case in wanted))
    lines = [["method", *(f"{t}: {w}" for t in targets for w in ("before", "test", "vs random")), "scoring, s", "s"]]
    names = dict.fromkeys(case.name for case in wanted)
    at = {name: [found.get(f"{name} @ {target}") for target in targets] for name in names}
    for name in sorted(at, key=lambda name: -(last.after[0] if (last := at[name][-1]) else 0.0)):
        seen = [one for one in at[name] if one]
        if seen:
            columns = [cell for one in at[name] for cell in cells(one)]
            lines.append([name, *columns, f"{seen[0].mean('scoring_seconds'):.2f}", f"{seen[0].mean('seconds'):.0f}"])
    return lines


def plain_table(found: dict[str, Summary], wanted: Sequence[Case]) -> list[list[str]]:
    """One row per case, in the order of the cases."""
    heads = ["method", "target", "MACs, %", "effective MACs, %", "sparsity, %", "before", "test", "vs random"]
    lines = [[*heads, "scoring, s", "s"]]
    for case in wanted:
        one = found.get(case.key)
        if one is not None:
            shares = [f"{100 * one.mean(name):.1f}" for name in ("macs", "effective_macs", "sparsity")]
            ends = [f"{one.mean('scoring_seconds'):.2f}", f"{one.mean('seconds'):.0f}"]
            lines.append([case.name, case.target, *shares, *cells(one), *ends])
    return lines


def tables(rows: Sequence[Row]) -> dict[str, list[list[str]]]:
    wanted = [*DENSE, *cases()]
    found = summaries(rows, wanted)
    named = {name: [case for case in wanted if case.table == name] for name in dict.fromkeys(c.table for c in wanted)}
    made = {name: (unit_table if name == "units" else plain_table)(found, mine) for name, mine in named.items()}
    return {name: lines for name, lines in made.items() if len(lines) > 1}


def markdown(lines: list[list[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def show(lines: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def report(document: Path, held: dict[str, Any]) -> None:
    """The tables and how they came about, each between its markers in the document; text outside stays as it is."""
    rows = [Row(**row) for row in held["rows"]]
    made = {name: markdown(lines) for name, lines in tables(rows).items()}
    run, machine = held["run"], held["machine"]
    seeds = len({row.seed for row in rows})
    made["setting"] = (
        f"`{held['command']}`, {held['date']}: {seeds} seed{'s' if seeds > 1 else ''}, {run['epochs']} epochs of dense "
        f"training, {run['steps']} steps of finetuning; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['workers']} worker{'s' if machine['workers'] > 1 else ''} of one thread, torch {machine['torch']}."
    )
    text = document.read_text(encoding="utf-8")
    for name, body in made.items():
        pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{document} must have the markers <!-- {name}: begin --> and <!-- {name}: end -->")
        text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)  # type: ignore[misc]
    write_atomic(document, text)


# ---- the run


def main() -> int:
    chosen = arguments()
    run = Run(chosen.steps, chosen.epochs, str(chosen.baselines))
    held = stored(chosen, run)
    if not chosen.report_only:
        todo = jobs(chosen, held)
        failed = carry_out(todo, run, chosen, held)
        if failed:
            print(f"{failed} of {len(todo)} jobs failed; give the same command again to repeat them", file=sys.stderr)
            return 1
    for lines in tables([Row(**row) for row in held["rows"]]).values():
        show(lines)
    if chosen.document is not None:
        report(chosen.document, held)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="dense trainings, each pruned by every method")
    parser.add_argument("--steps", type=int, default=240, help=f"of finetuning, a multiple of {UNITS}")
    parser.add_argument("--epochs", type=int, default=3, help="of dense training")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "methods.json")
    parser.add_argument("--baselines", type=Path, default=ROOT / "baselines", help="folder of the dense models")
    parser.add_argument("--methods", default="", help="names of methods, comma between: those and their references")
    parser.add_argument("--report-only", action="store_true", help="tables of what is there; measures nothing")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="whose tables are written")
    parser.add_argument("--no-document", dest="document", action="store_const", const=None, help="print tables only")
    chosen = parser.parse_args()
    if chosen.steps < UNITS or chosen.steps % UNITS:
        parser.error(f"--steps must be a multiple of {UNITS}; got {chosen.steps}")
    known = {case.method for case in cases()}
    if unknown := sorted(set(filter(None, chosen.methods.split(","))) - known):
        parser.error(f"--methods names unknown methods {unknown}; known: {', '.join(sorted(known))}")
    everything = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    if left := sorted(everything - {case.method for case in cases()} - set(SKIPPED)):
        parser.error(f"every file of conf/method has a row or a reason in SKIPPED; {left} have neither")
    return chosen


def stored(chosen: argparse.Namespace, run: Run) -> dict[str, Any]:
    """The results so far; those of other steps or epochs are not mixed with."""
    same = {"steps": run.steps, "epochs": run.epochs}
    if chosen.report_only and not chosen.out.exists():
        raise SystemExit(f"--report-only needs results; {chosen.out} does not exist: leave it out to measure")
    if chosen.out.exists():
        held: dict[str, Any] = json.loads(chosen.out.read_text())
        if chosen.report_only or held["run"] == same:
            return held
        raise SystemExit(f"{chosen.out} holds results of {held['run']}, not of {same}; take another --out")
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "workers": chosen.workers,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    command = shlex.join(["python", "benchmarks/methods.py", *sys.argv[1:]])
    return {"run": same, "machine": machine, "command": command, "date": date.today().isoformat(), "rows": []}


def processor() -> str:
    """As Linux names it, elsewhere the architecture."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


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


def carry_out(todo: list[tuple[Case, int]], run: Run, chosen: argparse.Namespace, held: dict[str, Any]) -> int:
    """Run the jobs and store each row as it comes; the number of jobs that failed."""
    done = failed = 0
    begin = time.perf_counter()
    with ProcessPoolExecutor(chosen.workers, multiprocessing.get_context("spawn"), one_thread) as pool:
        for case, seed, future in in_turn(pool, run, todo):
            done += 1
            try:
                rows = future.result()
            except Exception as error:
                failed += 1
                print(f"{case.key}, seed {seed} failed: {error.__cause__ or error}", file=sys.stderr, flush=True)
                continue
            held["rows"] += [dataclasses.asdict(row) for row in rows]
            write_atomic(chosen.out, json.dumps(held, indent=1) + "\n")
            left = (time.perf_counter() - begin) / done * (len(todo) - done)
            for row in rows:
                print(
                    f"[{done}/{len(todo)}, {left / 60:.0f} min left] {row.case}, seed {seed}: before {row.before:.4f}, "
                    f"test {row.after:.4f}, MACs {row.macs:.3f}, effective {row.effective_macs:.3f}, "
                    f"sparsity {row.sparsity:.3f}, {row.seconds:.1f} s",
                    flush=True,
                )
    return failed


def in_turn(
    pool: ProcessPoolExecutor, run: Run, todo: list[tuple[Case, int]]
) -> Iterator[tuple[Case, int, Future[list[Row]]]]:
    """Jobs as they end; the dense models before those that are cut from them."""
    for some in ([j for j in todo if j[0].table == "dense"], [j for j in todo if j[0].table != "dense"]):
        futures = {pool.submit(measure, run, case, seed): (case, seed) for case, seed in some}
        for future in as_completed(futures):
            yield *futures[future], future


def one_thread() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
