"""Confirmation: models finetuned in full over several seeds, then measured on test data, once, at the end."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.phases.sparse import Sparse
from lightning_modules.pruning.activations import attached
from lightning_modules.pruning.structure import Keep
from lightning_modules.pruning.weights import zeros_of
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.search.costs import Costed, costs_of
from orchestrator.search.lab.problem import Problem, Training, seed_of
from orchestrator.search.trials.failures import in_smaller_parts
from orchestrator.stored import kept

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A model to be confirmed; `keep` are the dense units it has, `source` is plain data that says where it is from.

    Weights at zero in its `sparse` tensors stay zero, its activations are pruned at `level`, and with `int8` what is
    measured is the quantised model. `round_steps` are the optimizer steps of a round; None: as configured. `accumulate`
    is the number of parts in which its batches fit into memory.
    """

    label: str
    model: nn.Module
    keep: Keep
    source: Any
    sparse: tuple[str, ...] = ()
    level: float | None = None
    int8: bool = False
    round_steps: int | None = None
    accumulate: int = 1


@dataclass(frozen=True)
class Confirmed:
    """Metrics per seed, in the order of `phases.confirm.seeds`; `best` is the place of the best validation quality.

    `costs` are those of that seed's model, `accumulate` is the number of parts in which its batches were taken.
    """

    validation: tuple[dict[str, float], ...]
    test: tuple[dict[str, float], ...]
    best: int
    costs: dict[str, float]
    accumulate: int = 1

    def mean(self, metric: str) -> float:
        return float(np.mean([found[metric] for found in self.test]))

    def std(self, metric: str) -> float:
        """Sample standard deviation over the seeds."""
        return float(np.std([found[metric] for found in self.test], ddof=1))

    def validated(self, metric: str) -> float:
        return float(np.mean([found[metric] for found in self.validation]))


def confirm(
    problem: Problem, candidate: Candidate, folder: Path, tick: Tick
) -> tuple[Confirmed, nn.Module | None]:
    """Finetune copies of the candidate, one per seed, and test them; or read them back from `folder`.

    The model returned is the seed with the best validation quality, None when nothing had to be trained.
    """
    how, label, level = problem.settings.phases.confirm, candidate.label, candidate.level
    if (
        stored := confirmed_before(problem, label, folder, candidate.source, candidate.round_steps)
    ) is not None:
        return stored, None
    validation, test, models, measured, parts = [], [], [], [], []
    for place, seed in enumerate(how.seeds):
        tick(f"{label}, seed {seed} ({place + 1} of {len(how.seeds)})")
        copied, taken = _finetuned_in_memory(problem, candidate, seed)
        parts.append(taken)
        small = (
            problem.quantised(copied, _int8_path(folder, label, seed), level)
            if candidate.int8
            else copied
        )
        validation.append(problem.validate(small, level))
        test.append(problem.test(small, level))
        models.append(copied.eval())
        measured.append(small)
    best = _best(problem, validation)
    artifact = _int8_path(folder, label, how.seeds[best]) if candidate.int8 else None
    costs = _costs(problem, candidate, models[best], measured[best], artifact)
    found = Confirmed(tuple(validation), tuple(test), best, costs, parts[best])
    record = {"key": _key(problem, candidate.source, candidate.round_steps), **asdict(found)}
    write_atomic(folder / f"{label}.json", json.dumps(record, indent=1))
    return found, models[best]


def _costs(
    problem: Problem, candidate: Candidate, model: nn.Module, measured: Any, artifact: Path | None
) -> dict[str, float]:
    """Costs of a confirmed model; `measured` is what runs: the model, or the quantised one."""
    kept = problem.structure.counts(candidate.keep)
    density = problem.density(model, candidate.sparse, candidate.level)
    costed = Costed(kept, density, shaped=measured, trained=model, artifact=artifact)
    with problem.timed("evaluation"), attached(measured, problem.activation(candidate.level)):
        return costs_of(problem.prices, costed)


def _finetuned_in_memory(
    problem: Problem, candidate: Candidate, seed: int
) -> tuple[nn.Module, int]:
    """With batches in as many parts as they came to need; the number."""
    how = problem.settings.phases.confirm

    def attempt(parts: int) -> nn.Module:
        return finetuned(
            problem, replace(candidate, accumulate=parts), seed, how.rounds, how.lr_factor
        )

    return in_smaller_parts(attempt, candidate.accumulate, problem.settings.study.on_out_of_memory)


def finetuned(
    problem: Problem, candidate: Candidate, seed: int, rounds: int, lr_factor: float
) -> nn.Module:
    """A copy of the candidate's model after the finetuning of one seed, on the training data as it is."""
    copied = copy.deepcopy(candidate.model)
    held = [Sparse(masks)] if (masks := zeros_of(copied, candidate.sparse)) else []
    seeded = seed_of(problem.settings.seed, 4, seed)
    training = Training(
        rounds,
        seeded,
        round_steps=candidate.round_steps,
        lr_factor=lr_factor,
        level=candidate.level,
        accumulate=candidate.accumulate,
        mixed=0,
        callbacks=held,
    )
    problem.finetune(copied, training)
    return copied


def _int8_path(folder: Path, label: str, seed: int) -> Path:
    return folder / f"{label}-{seed}.int8.onnx"


def best_int8(
    problem: Problem, candidate: Candidate, found: Confirmed, folder: Path
) -> Path | None:
    """The quantised file of the seed that validated best; None where the candidate is not quantised."""
    seed = problem.settings.phases.confirm.seeds[found.best]
    return _int8_path(folder, candidate.label, seed) if candidate.int8 else None


def _best(problem: Problem, validation: list[dict[str, float]]) -> int:
    quality = problem.settings.objectives.quality
    return max(
        range(len(validation)),
        key=lambda i: (problem.sign * validation[i][quality], -problem.goals.loss(validation[i])),
    )


def confirmed_before(
    problem: Problem, label: str, folder: Path, source: Any, round_steps: int | None = None
) -> Confirmed | None:
    """What an earlier run measured of the same model in the same way."""
    found = kept(folder / f"{label}.json", lambda data: (data.pop("key"), _parsed(data)))
    return None if found is None or found[0] != _key(problem, source, round_steps) else found[1]


def _parsed(data: Any) -> Confirmed:
    validation, test = (
        tuple(_metrics(found) for found in data[name]) for name in ("validation", "test")
    )
    found = Confirmed(
        **{**data, "validation": validation, "test": test, "costs": _metrics(data["costs"])}
    )
    if not (len(validation) == len(test) and 0 <= found.best < len(test)):
        raise ValueError("it must have the metrics of every seed, and the best of them")
    return found


def _metrics(data: Any) -> dict[str, float]:
    return {name: float(value) for name, value in data.items()}


def _key(problem: Problem, source: Any, round_steps: int | None) -> str:
    how, finetune = problem.settings.phases.confirm, problem.settings.phases.finetune
    rest = finetune.model_dump(mode="json", exclude={"optimizer", "scheduler"})
    rest["round_steps"] = round_steps or finetune.round_steps
    return digest(
        [source, how.seeds, how.rounds, how.lr_factor, rest, finetune.optimizer, finetune.scheduler]
    )
