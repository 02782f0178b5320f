"""The last steps of a study: confirm the front, export its models, run the baselines beside it."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.errors import UserError
from lightning_modules.phases.memory import release_memory
from lightning_modules.pruning.removal import rebuild
from lightning_modules.pruning.weights import effective_macs
from orchestrator.costs import ratios_of, with_ratios
from orchestrator.files import write_atomic
from orchestrator.progress import Progress
from orchestrator.redact import redact
from orchestrator.results.quantities import axis_words
from orchestrator.results.rows import ConfirmedRow, TrialRow
from orchestrator.search.confirmation.confirm import (
    Candidate,
    Confirmed,
    best_int8,
    confirm,
    confirmed_before,
)
from orchestrator.search.confirmation.ladders import Rung, climb
from orchestrator.search.front import non_dominated, spread_out
from orchestrator.search.lab.problem import Problem
from orchestrator.search.plans.finished import (
    INT8,
    PLAN,
    finished_weights,
    keep_from_json,
    read_plan,
    save_plan,
)
from orchestrator.search.plans.lineage import lineage_in, made_with, weights_digest
from orchestrator.search.trials.evaluate import Evaluator
from orchestrator.search.trials.failures import SMALLER, most_common, needed, reason_of
from orchestrator.search.trials.methods import Method
from orchestrator.search.trials.pruners import WeightPruner


def confirm_front(
    problem: Problem,
    evaluator: Evaluator,
    chosen: list[TrialRow],
    progress: Progress,
    round_steps: int | None = None,
) -> tuple[list[ConfirmedRow], ConfirmedRow, dict[str, str]]:
    """Front rows, large to small, the dense model finetuned as long as they are, and why others were not confirmed.

    `chosen` come from the search's front on validation data (`results.candidates`); `round_steps` are those of a round,
    None: as configured. After full finetuning those that
    another one dominates on validation data (mean over the seeds) leave, those outside a bound, and those whose
    finetuning failed. Test data decides nothing.

    Errors: UserError where none could be confirmed, or the dense model could not.
    """
    settings = problem.settings
    how = settings.phases.confirm
    progress.phase("confirm", f"{len(chosen)} models, {len(how.seeds)} seeds each, then test data")
    confirmed: list[tuple[TrialRow, Confirmed]] = []
    failed: dict[str, str] = {}
    for row in chosen:
        with _left_out(problem, f"trial-{row.number}", failed, progress):
            confirmed.append(
                (row, _confirmed(problem, evaluator, row.number, progress, round_steps))
            )
    if chosen and not confirmed:
        times, reason = most_common(list(failed.values()))
        raise UserError(
            f"a front needs confirmed models; none of {len(chosen)} is: {reason} ({times} times); all trials are kept: "
            "mend it (phases.finetune, phases.confirm) and give the same command again"
        )
    goals = problem.goals
    values = [
        {name: c.validated(name) for name in c.validation[0]}
        | with_ratios(c.costs, ratios_of(c.costs, problem.dense_costs))
        for _, c in confirmed
    ]
    points = np.array([goals.point(found, found) for found in values]).reshape(-1, len(goals.names))
    broken = [goals.broken(found) for found in values]
    for (row, _), reason in zip(confirmed, broken, strict=True):
        if reason:
            progress.tick(f"trial-{row.number} leaves the front: {reason}")
    within = np.array([not reason for reason in broken], dtype=np.bool_)
    kept = np.zeros(len(confirmed), dtype=np.bool_)
    kept[within] = non_dominated(points[within], how.tolerance * problem.scale)
    members = [
        _row(
            problem,
            "front",
            row.number,
            result,
            row.method,
            str(settings.study.folder / "models" / str(row.number)),
        )
        for (row, result), keep in zip(confirmed, kept, strict=True)
        if keep
    ]
    return members, _dense(problem, progress, round_steps), failed


@contextmanager
def _left_out(
    problem: Problem, name: str, failed: dict[str, str], progress: Progress
) -> Iterator[None]:
    """What fails inside is said and noted, its traceback kept; the rest of the study goes on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        trace = (
            problem.settings.study.folder / "confirm" / f"{name.replace(' ', '-')}.traceback.txt"
        )
        write_atomic(trace, redact(traceback.format_exc()))
        failed[name] = redact(reason_of(error))
        progress.phase(name, f"left out, it failed: {failed[name]}; see {trace}")
    if name in failed:
        release_memory()


def _confirmed(
    problem: Problem, evaluator: Evaluator, number: int, progress: Progress, round_steps: int | None
) -> Confirmed:
    """One trial's model, confirmed and exported."""
    out = problem.settings.study.folder
    source, target, folder = (
        evaluator.models / str(number),
        out / "models" / str(number),
        out / "confirm",
    )
    document = read_plan(source)
    if not (
        target / PLAN
    ).exists():  # a run killed between the two: what is confirmed again is exported again
        (folder / f"trial-{number}.json").unlink(missing_ok=True)
    found = evaluator.read(source)
    weights = finished_weights(source, found, problem.model, problem.structure)
    model = rebuild(problem.model, weights, document["dropped"], problem.structure.attention).to(
        problem.device
    )
    candidate = Candidate(
        f"trial-{number}",
        model,
        found.keep,
        found.weights,
        tuple(document["density"]),
        document["plan"]["activation"],
        document["plan"]["int8"],
        round_steps,
        document["plan"]["timing"].get("accumulate", 1),
    )
    result, best = confirm(problem, candidate, folder, progress.tick)
    if best is not None:
        int8 = best_int8(problem, candidate, result, folder)
        _export(problem, target, document, result, best, int8, round_steps)
    return result


def run_baselines(
    problem: Problem,
    method: Method,
    front: list[ConfirmedRow],
    progress: Progress,
    afford: Callable[[str, Sequence[Rung], Sequence[Rung]], bool] = lambda name, rungs, confirmed: (
        True
    ),
    round_steps: int | None = None,
) -> tuple[list[ConfirmedRow], dict[str, str]]:
    """Ladders with a rung at each of the front's models, at its MACs and steps of finetuning; some are confirmed.

    Also why others have none: their finetuning failed.
    One that a budget in time cannot `afford` (its name, rungs, those of them that are confirmed) is left out.
    """
    how, folder = problem.settings.phases.confirm, problem.settings.study.folder / "confirm"
    rungs = [_rung(problem, row.trial) for row in front if row.trial is not None]
    matched = {
        rungs[i].trial
        for i in spread_out([float(row.cost) for row in front], how.max_baseline_models)
    }
    found: list[ConfirmedRow] = []
    failed: dict[str, str] = {}
    for name in how.baselines:
        if not afford(name, rungs, [rung for rung in rungs if rung.trial in matched]):
            progress.phase(f"baseline {name}", "left out: it would not end within study.budget")
            continue
        progress.phase(
            f"baseline {name}", f"{len(rungs)} rungs at the front's FLOPs, {len(matched)} confirmed"
        )
        with _left_out(problem, f"baseline {name}", failed, progress):
            found += _ladder(problem, method, name, rungs, matched, folder, progress, round_steps)
    return found, failed


def _rung(problem: Problem, trial: int) -> Rung:
    """What a ladder matches of a front model: effective MACs by units and weights, as ladders prune no activations."""
    folder = problem.settings.study.folder / "trials" / str(trial)
    document = read_plan(folder)
    keep = keep_from_json(document["keep"], problem.structure)
    macs = effective_macs(problem.structure, keep, document["density"])
    steps = lineage_in(document, folder).trained_steps
    return Rung(trial, macs, steps, document["plan"]["timing"].get("mixed"))


def _ladder(
    problem: Problem,
    method: Method,
    name: Any,
    rungs: list[Rung],
    matched: set[int],
    folder: Path,
    progress: Progress,
    round_steps: int | None,
) -> list[ConfirmedRow]:
    source = [name, [astuple(rung) for rung in rungs], method.settings.plain()]
    wanted = [rung.trial for rung in rungs if rung.trial in matched]
    before = [
        confirmed_before(problem, f"{name}-{trial}", folder, source, round_steps)
        for trial in wanted
    ]
    if all(before):
        return [
            _row(problem, name, trial, row)
            for trial, row in zip(wanted, before, strict=True)
            if row
        ]
    found = []
    words = axis_words(problem.axis)
    first = method.stages[0].pruner
    sparse = tuple(first.names) if isinstance(first, WeightPruner) else ()
    for rung, model, keep in climb(problem, method, name, rungs):
        progress.tick(f"{name}: rung at {rung.macs / problem.dense_macs:.1%} of the {words}")
        if rung.trial not in matched:
            continue
        candidate = Candidate(
            f"{name}-{rung.trial}", model, keep, source, sparse, round_steps=round_steps
        )
        result, _ = confirm(problem, candidate, folder, progress.tick)
        found.append(_row(problem, name, rung.trial, result))
    return found


def _dense(problem: Problem, progress: Progress, round_steps: int | None) -> ConfirmedRow:
    model: nn.Module = copy.deepcopy(problem.model)
    source = [problem.dense_digest]
    candidate = Candidate("dense", model, problem.structure.full(), source, round_steps=round_steps)
    with needed(
        "finetuning of the dense model, which the front is compared with,",
        SMALLER.format("finetune"),
    ):
        result, _ = confirm(
            problem, candidate, problem.settings.study.folder / "confirm", progress.tick
        )
    return _row(problem, "dense", None, result)


def _row(
    problem: Problem,
    origin: str,
    trial: int | None,
    result: Confirmed,
    method: str = "",
    path: str = "",
) -> ConfirmedRow:
    quality, nonzero = problem.settings.objectives.quality, result.costs["nonzero_params"]
    return ConfirmedRow(
        origin=origin,
        trial=trial,
        test_mean=result.mean(quality),
        test_std=result.std(quality),
        seeds=len(result.test),
        path=path,
        method=method,
        axis=problem.settings.objectives.layout,
        costs=result.costs,
        ratios=ratios_of(result.costs, problem.dense_costs),
        sparsity=1.0 - nonzero / problem.dense_params,
        metrics={name: result.mean(name) for name in problem.goals.metrics},
    )


def _export(
    problem: Problem,
    folder: Path,
    document: dict[str, Any],
    result: Confirmed,
    model: nn.Module,
    int8: Path | None,
    round_steps: int | None,
) -> None:
    """The confirmed weights of the seed that validated best, what every seed measured, and the last finetuning."""
    how = problem.settings.phases.confirm
    seeds = how.seeds
    by_seed = {
        str(seed): {"validation": v, "test": t}
        for seed, v, t in zip(seeds, result.validation, result.test, strict=True)
    }
    if int8 is not None:
        write_atomic(folder / INT8, int8.read_bytes())
    confirmation = {
        "seed": seeds[result.best],
        "rounds": how.rounds,
        "round_steps": round_steps,
        "accumulate": result.accumulate,
        "lr_factor": how.lr_factor,
        "weights": weights_digest(model),
        "made_with": made_with(problem.device, problem.memory_format),
    }
    confirmed = {
        "confirmed": by_seed,
        "confirmed_seed": seeds[result.best],
        "confirmation": confirmation,
    }
    save_plan(folder, {**document, **confirmed}, model)
