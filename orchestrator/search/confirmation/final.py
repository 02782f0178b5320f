"""The last steps of a study: confirm the front, export its models, run the baselines beside it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_modules.errors import DataError, UserError
from lightning_modules.phases.memory import release_memory
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from orchestrator.costs import ratios_of, with_ratios
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.files import write_atomic
from orchestrator.load import load_pruned
from orchestrator.progress import Progress
from orchestrator.redact import redact
from orchestrator.results.rows import FRONT_ORIGIN, ConfirmedRow, TrialRow
from orchestrator.search.confirmation.confirm import (
    Candidate,
    Confirmed,
    confirm,
    exported_path,
)
from orchestrator.search.front import non_dominated
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.lab import CONFIRMING_RATE, FinalLab
from orchestrator.search.lab.reload import apart
from orchestrator.search.plans.finished import PLAN, read_plan, save_plan
from orchestrator.search.plans.lineage import made_with, weights_digest
from orchestrator.search.plans.names import RECORDS
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.trials.evaluate import begun
from orchestrator.search.trials.failures import SMALLER, most_common, needed, reason_of


@dataclass(frozen=True)
class Confirmation:
    """The confirmation of one study.

    `store` has the finished plans, `folder` is that of the study. `round_steps` are the optimizer
    steps of a round; None: as configured. `failed` collects the names of models and ladders that
    could not be confirmed, with the reason.
    """

    final: FinalLab
    store: PlanStore
    folder: Path
    progress: Progress
    round_steps: int | None = None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> Facts:
        return self.final.facts

    @property
    def records(self) -> Path:
        """The folder with the measurements of each seed."""
        return self.folder / RECORDS

    def confirmed(self, candidate: Candidate) -> tuple[Confirmed, nn.Module | None]:
        return confirm(self.final, candidate, self.records, self.progress.tick)

    @contextmanager
    def left_out(self, name: str) -> Iterator[None]:
        """Leaves out the part inside the `with` block if it fails; the rest of the study goes on.

        The failure is reported and noted, and its traceback kept.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            trace = self.records / f"{name.replace(' ', '-')}.traceback.txt"
            write_atomic(trace, redact(traceback.format_exc()))
            self.failed[name] = redact(reason_of(error))
            self.progress.phase(name, f"left out, it failed: {self.failed[name]}; see {trace}")
        if name in self.failed:
            release_memory()


def confirm_front(
    confirmation: Confirmation, chosen: list[TrialRow]
) -> tuple[list[ConfirmedRow], ConfirmedRow]:
    """Front rows, large to small, and the dense model finetuned as long as they are.

    `chosen` come from the search's front on validation data (`results.candidates`). After full
    finetuning some leave: those that another one dominates on validation data (mean over the
    seeds), those outside a bound, and those whose finetuning failed. Test data decides nothing.
    Errors: UserError where none could be confirmed, or the dense model could not.
    """
    seeds = confirmation.final.lab.phases.confirm.seeds
    confirmation.progress.phase(
        "confirm", f"{len(chosen)} models, {len(seeds)} seeds each, then test data"
    )
    confirmed: list[tuple[TrialRow, Confirmed]] = []
    for row in chosen:
        name = f"trial-{row.number}"
        if name in confirmation.failed:
            # in another process of the study
            continue
        with confirmation.left_out(name):
            confirmed.append((row, confirm_trial(confirmation, row.number)))
    if chosen and not confirmed:
        times, reason = most_common(list(confirmation.failed.values()))
        raise UserError(
            f"a front needs confirmed models; none of {len(chosen)} is: {reason} ({times} times); "
            "all trials are kept: mend it (phases.finetune, phases.confirm) and give the same "
            "command again"
        )
    return _members(confirmation, confirmed), _dense_row(confirmation)


def _members(
    confirmation: Confirmation, confirmed: Sequence[tuple[TrialRow, Confirmed]]
) -> list[ConfirmedRow]:
    """The models on the front by validation data."""
    facts = confirmation.facts
    points = []
    within = []
    for row, result in confirmed:
        metrics = {name: result.validated(name) for name in result.validation[0]}
        ratios = ratios_of(result.costs, facts.dense_costs)
        values = metrics | with_ratios(result.costs, ratios)
        points.append(facts.goals.point(values, values))
        reason = facts.goals.broken(values)
        within.append(not reason)
        if reason:
            confirmation.progress.tick(f"trial-{row.number} leaves the front: {reason}")
    inside = np.array(within, dtype=np.bool_)
    table = np.array(points).reshape(-1, len(facts.goals.names))
    tolerance = confirmation.final.lab.phases.confirm.tolerance * facts.scale
    on_front = np.zeros(len(confirmed), dtype=np.bool_)
    on_front[inside] = non_dominated(table[inside], tolerance)
    members = []
    for index in np.flatnonzero(on_front).tolist():
        row, result = confirmed[index]

        path = str(confirmation.folder / "models" / str(row.number))
        members.append(confirmed_row(facts, FRONT_ORIGIN, row.number, result, row.method, path))
    return members


def confirm_trial(confirmation: Confirmation, number: int) -> Confirmed:
    """One trial's model, confirmed and exported."""
    lab = confirmation.final.lab
    store = confirmation.store
    target = confirmation.folder / "models" / str(number)
    if not (target / PLAN).exists():
        # a run was killed between confirming and exporting: confirming again exports again
        (confirmation.records / f"trial-{number}.json").unlink(missing_ok=True)
    document = read_plan(store.of(number))
    finished = store.read(store.of(number))
    working = begun(lab, store.weights(finished), finished.keep, ())
    plan = document["plan"]
    candidate = Candidate(
        f"trial-{number}",
        working.model,
        finished.keep,
        finished.weights,
        tuple(document["density"]),
        plan["activation"],
        plan["export"],
        confirmation.round_steps,
        plan["timing"].get("accumulate", 1),
    )
    result, model = confirmation.confirmed(candidate)
    if model is not None:
        _copy_export(confirmation, candidate, result, target)
        save_plan(target, {**document, **confirmation_record(confirmation, result, model)}, model)
        if plan["activation"] is None:
            require_loads(target, model, confirmation.facts.prices.example)
    return result


def require_loads(folder: Path, model: nn.Module, example: Inputs) -> None:
    """Load what was exported, and compare it with the model that it was exported from.

    Errors: DataError where it does not load or computes something else; then it is no export.
    """
    try:
        loaded = load_pruned(folder)
        difference = apart(loaded, copy_of(model).cpu(), example.to(torch.device("cpu")))
    except Exception as error:  # whatever the model's own code raises
        difference = f"{type(error).__name__}: {error}"
    if difference is not None:
        (folder / PLAN).unlink()
        raise DataError(
            f"an exported model must load and compute what it did before; that of {folder.name} "
            f"does not: {difference}; see that its architecture is the same each time it is built"
        )


def _copy_export(
    confirmation: Confirmation, candidate: Candidate, result: Confirmed, target: Path
) -> None:
    """The exported file of the seed that validated best, beside its weights."""
    seed = confirmation.final.lab.phases.confirm.seeds[result.best]
    path = exported_path(candidate, confirmation.records, seed)
    if candidate.export is not None and path is not None:
        write_atomic(target / EXPORT_FORMATS[candidate.export].file, path.read_bytes())


def confirmation_record(
    confirmation: Confirmation, result: Confirmed, model: nn.Module
) -> dict[str, Any]:
    """The part of `plan.json` about the confirmation.

    It has the measurements of every seed, and the finetuning of the exported one.
    """
    lab = confirmation.final.lab
    confirm = lab.phases.confirm
    best = confirm.seeds[result.best]
    by_seed = {}
    for index, seed in enumerate(confirm.seeds):
        by_seed[str(seed)] = {"validation": result.validation[index], "test": result.test[index]}
    finetuning = {
        "seed": best,
        "rounds": confirm.rounds,
        "round_steps": confirmation.round_steps,
        "accumulate": result.accumulate,
        "lr_factor": CONFIRMING_RATE,
        "weights": weights_digest(model),
        "made_with": made_with(lab.device, lab.memory_format),
    }
    return {"confirmed": by_seed, "confirmed_seed": best, "confirmation": finetuning}


def confirm_dense(confirmation: Confirmation) -> Confirmed:
    """The dense model, finetuned as long as the others.

    Errors: UserError where it does not fit into memory.
    """
    facts = confirmation.facts
    candidate = Candidate(
        "dense",
        copy_of(facts.model),
        facts.structure.full(),
        [facts.dense_digest],
        round_steps=confirmation.round_steps,
    )
    with needed(
        "finetuning of the dense model, which the front is compared with,",
        SMALLER.format("finetune"),
    ):
        result, _ = confirmation.confirmed(candidate)
    return result


def _dense_row(confirmation: Confirmation) -> ConfirmedRow:
    facts = confirmation.facts
    result = confirm_dense(confirmation)
    # what ratios are against, not a second measurement of it
    latency = {"latency_ms": facts.prices.bench.dense_ms}
    return confirmed_row(facts, "dense", None, replace(result, costs={**result.costs, **latency}))


def confirmed_row(
    facts: Facts,
    origin: str,
    trial: int | None,
    result: Confirmed,
    method: str = "",
    path: str = "",
) -> ConfirmedRow:
    """The row of a confirmed model, whose `origin` says who made it."""
    quality = facts.goals.quality
    nonzero = result.costs["nonzero_params"]
    return ConfirmedRow(
        origin=origin,
        trial=trial,
        test_mean=result.mean(quality),
        test_std=result.std(quality),
        seeds=len(result.test),
        path=path,
        method=method,
        axis=facts.goals.costs[0],
        costs=result.costs,
        ratios=ratios_of(result.costs, facts.all_dense_costs),
        sparsity=1.0 - nonzero / facts.dense_params,
        metrics={name: result.mean(name) for name in facts.goals.metrics},
        latency_iqr_ms=result.latency_iqr_ms,
        validation={name: result.validated(name) for name in result.validation[0]},
    )
