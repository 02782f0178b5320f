"""Confirmation: models finetuned in full over several seeds, then measured on test data.

Test data is used once, at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.phases.sparse import Sparse
from lightning_modules.pruning.activations import attached
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.structure import Keep
from lightning_modules.pruning.weights import zeros_of
from lightning_modules.recipe import digest
from orchestrator.costs import COSTS
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.files import write_atomic
from orchestrator.search.costs import MEASURED_COSTS, Costed, costs_of
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.lab import CONFIRMING_RATE, Evaluated, FinalLab, Lab, Training
from orchestrator.search.trials.failures import in_smaller_parts
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import PhaseSettings
from orchestrator.stored import read_cache

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A model to be confirmed.

    `keep` are the dense units it has, `source` is plain data that says where it is from. Weights at
    zero in its `sparse` tensors stay zero, its activations are pruned at `level`, and with `export`
    the file of that format is measured. `round_steps` are the optimizer steps of a round; None: as
    configured. `accumulate` is the number of parts in which its batches fit into memory.
    """

    label: str
    model: nn.Module
    keep: Keep
    source: Any
    sparse: tuple[str, ...] = ()
    level: float | None = None
    export: str | None = None
    round_steps: int | None = None
    accumulate: int = 1


@dataclass(frozen=True)
class Confirmed:
    """Metrics per seed, in the order of `phases.confirm.seeds`; `by_class` likewise, on test data.

    `best` is the index of the best validation quality. `costs` are those of that seed's model,
    `latency_iqr_ms` is the distance of the quartiles of its latency, `accumulate` the number of
    parts in which its batches were taken.
    """

    validation: tuple[dict[str, float], ...]
    test: tuple[dict[str, float], ...]
    best: int
    costs: dict[str, float]
    latency_iqr_ms: float
    accumulate: int = 1
    by_class: tuple[dict[str, float], ...] = ()

    def mean(self, metric: str) -> float:
        return float(np.mean(_values(self.test, metric)))

    def std(self, metric: str) -> float:
        """Sample standard deviation over the seeds."""
        return float(np.std(_values(self.test, metric), ddof=1))

    def validated(self, metric: str) -> float:
        return float(np.mean(_values(self.validation, metric)))


def _values(seeds: Sequence[dict[str, float]], metric: str) -> list[float]:
    """The metric of every seed."""
    return [metrics[metric] for metrics in seeds]


def confirm(
    final: FinalLab, candidate: Candidate, folder: Path, tick: Tick
) -> tuple[Confirmed, nn.Module | None]:
    """Finetune copies of the candidate, one per seed, and test them; or read that from `folder`.

    The model returned is the seed with the best validation quality, None when nothing had to be
    trained.
    """
    lab = final.lab
    label = candidate.label
    seeds = lab.phases.confirm.seeds
    stored = confirmed_before(lab, label, folder, candidate.source, candidate.round_steps)
    if stored is not None:
        return stored, None
    results: list[_SeedResult] = []
    for number, seed in enumerate(seeds, start=1):
        tick(f"{label}, seed {seed} ({number} of {len(seeds)})")
        results.append(_one_seed(final, candidate, folder, seed))
    validation = [result.validation for result in results]
    best = _best(lab.facts, validation)
    chosen = results[best]
    artifact = exported_path(candidate, folder, seeds[best])
    confirmed = Confirmed(
        tuple(validation),
        tuple([result.test.metrics for result in results]),
        best,
        *_costs(lab, candidate, chosen.model, chosen.measured, artifact),
        chosen.parts,
        tuple([result.test.by_class for result in results]),
    )
    key = _key(lab.phases, candidate.source, candidate.round_steps)
    record = {"key": key, **asdict(confirmed)}
    write_atomic(folder / f"{label}.json", json.dumps(record, indent=1))
    return confirmed, chosen.model


@dataclass(frozen=True)
class _SeedResult:
    """The result of one seed.

    `measured` is the model or its exported file, `parts` the parts of its batches.
    """

    validation: dict[str, float]
    test: Evaluated
    model: nn.Module
    measured: Any
    parts: int


def _one_seed(final: FinalLab, candidate: Candidate, folder: Path, seed: int) -> _SeedResult:
    lab = final.lab
    level = candidate.level
    model, parts = _finetuned_in_memory(lab, candidate, seed)
    measured: Any = model
    path = exported_path(candidate, folder, seed)
    if candidate.export is not None and path is not None:
        measured = lab.exported(model, EXPORT_FORMATS[candidate.export], path, level)
    validation = lab.validate(measured, level)
    test = final.test(measured, level)
    return _SeedResult(validation, test, model.eval(), measured, parts)


def _costs(
    lab: Lab, candidate: Candidate, model: nn.Module, measured: Any, artifact: Path | None
) -> tuple[dict[str, float], float]:
    """Costs of a confirmed model, and the distance of the quartiles of its latency in ms.

    `measured` is what runs: the model, or the quantised one.
    """
    prices = lab.facts.prices
    kept = lab.facts.structure.counts(candidate.keep)
    density = lab.density(model, candidate.sparse, candidate.level)
    costed = Costed(kept, density, shaped=measured, trained=model, artifact=artifact)
    with lab.timed("evaluation"), attached(measured, lab.activation(candidate.level)):
        costs = costs_of(prices, costed, [name for name in COSTS if name not in MEASURED_COSTS])
        latency = prices.bench(measured)
    costs["latency_ms"] = latency.median
    return costs, latency.upper - latency.lower


def _finetuned_in_memory(lab: Lab, candidate: Candidate, seed: int) -> tuple[nn.Module, int]:
    """The finetuned model, and the number of parts in which its batches fitted into memory."""
    settings = lab.phases.confirm

    def attempt(parts: int) -> nn.Module:
        smaller = replace(candidate, accumulate=parts)
        return finetuned(lab, smaller, seed, settings.rounds, CONFIRMING_RATE)

    return in_smaller_parts(attempt, candidate.accumulate, lab.on_out_of_memory)


def finetuned(
    lab: Lab, candidate: Candidate, seed: int, rounds: int, lr_factor: float
) -> nn.Module:
    """A copy of the candidate's model after the finetuning of one seed.

    It is trained on the training data as it is, without mixed copies.
    """
    model = copy_of(candidate.model)
    masks = zeros_of(model, candidate.sparse)
    training = Training(
        rounds,
        seed_of(lab.seed, Stream.CONFIRMATION, seed),
        round_steps=candidate.round_steps,
        lr_factor=lr_factor,
        level=candidate.level,
        accumulate=candidate.accumulate,
        mixed=0,
        callbacks=[Sparse(masks)] if masks else [],
    )
    lab.finetune(model, training)
    return model


def exported_path(candidate: Candidate, folder: Path, seed: int) -> Path | None:
    """The exported file of a seed; None where the model itself is measured."""
    if candidate.export is None:
        return None
    suffix = EXPORT_FORMATS[candidate.export].file.removeprefix("model")
    return folder / f"{candidate.label}-{seed}{suffix}"


def _best(facts: Facts, validation: list[dict[str, float]]) -> int:
    """The index of the best quality; of equals that with the lowest loss."""
    goals = facts.goals

    def rank(index: int) -> tuple[float, float]:
        metrics = validation[index]
        return goals.sign * metrics[goals.quality], -goals.loss(metrics)

    return max(range(len(validation)), key=rank)


def confirmed_before(
    lab: Lab, label: str, folder: Path, source: Any, round_steps: int | None = None
) -> Confirmed | None:
    """The result of an earlier run for the same model in the same way; None where there is none."""
    stored = read_cache(folder / f"{label}.json", lambda data: (data.pop("key"), _parsed(data)))
    if stored is None or stored[0] != _key(lab.phases, source, round_steps):
        return None
    return stored[1]


def _parsed(data: Any) -> Confirmed:
    validation = tuple([_metrics(metrics) for metrics in data["validation"]])
    test = tuple([_metrics(metrics) for metrics in data["test"]])
    by_class = tuple([_metrics(qualities) for qualities in data.get("by_class", ())])
    numbers = {"validation": validation, "test": test, "costs": _metrics(data["costs"])}
    confirmed = Confirmed(**{**data, **numbers, "by_class": by_class})
    if not (len(validation) == len(test) and 0 <= confirmed.best < len(test)):
        raise ValueError("it must have the metrics of every seed, and the best of them")
    return confirmed


def _metrics(data: Any) -> dict[str, float]:
    return {name: float(value) for name, value in data.items()}


def _key(phases: PhaseSettings, source: Any, round_steps: int | None) -> str:
    """A digest of everything that a confirmation follows from."""
    confirm = phases.confirm
    finetune = phases.finetune
    rest = finetune.model_dump(mode="json", exclude={"optimizer", "scheduler"})
    rest["round_steps"] = round_steps or finetune.round_steps
    conditions = [
        source,
        confirm.seeds,
        confirm.rounds,
        CONFIRMING_RATE,
        rest,
        finetune.optimizer,
        finetune.scheduler,
    ]
    return digest(conditions)
