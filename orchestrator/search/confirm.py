"""Confirmation: models finetuned in full over several seeds, then measured on test data, once, at the end."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.phases.latency import latency_ms
from lightning_modules.pruning.structure import Keep
from lightning_modules.pruning.weights import densities, effective_macs
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.search.problem import Problem, example_input, seed_of

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Costs:
    """What a model costs as it is; effective MACs and nonzero parameters leave out weights at zero."""

    macs: int
    effective_macs: int
    params: int
    nonzero_params: int

    def along(self, axis: str) -> int:
        """MACs on the axis of a study."""
        return self.effective_macs if axis == "effective_flops" else self.macs


def costs_of(problem: Problem, model: nn.Module, keep: Keep) -> Costs:
    """`keep` are the dense units that `model` has."""
    kept = problem.structure.counts(keep)
    density = densities(model, problem.held(model))
    nonzero = sum(int((parameter != 0).sum()) for parameter in model.parameters())
    effective = effective_macs(problem.structure, keep, density)
    return Costs(problem.cost.macs(kept), effective, problem.cost.params(kept), nonzero)


@dataclass(frozen=True)
class Confirmed:
    """Metrics per seed, in the order of `phases.confirm.seeds`; `best` is the place of the best validation quality."""

    validation: tuple[dict[str, float], ...]
    test: tuple[dict[str, float], ...]
    best: int
    latency_ms: float
    costs: Costs

    def mean(self, metric: str) -> float:
        return float(np.mean([found[metric] for found in self.test]))

    def std(self, metric: str) -> float:
        """Sample standard deviation over the seeds."""
        return float(np.std([found[metric] for found in self.test], ddof=1))

    def validated(self, metric: str) -> float:
        return float(np.mean([found[metric] for found in self.validation]))


def confirm(
    problem: Problem, label: str, model: nn.Module, costs: Costs, folder: Path, source: Any, tick: Tick
) -> tuple[Confirmed, nn.Module | None]:
    """Finetune copies of `model`, one per seed, and test them; read back from `folder` where `source` is the same.

    `source` is plain data that says where the model came from. The model returned is the
    seed with the best validation quality, None when nothing had to be trained.
    """
    how = problem.settings.phases.confirm
    if (stored := confirmed_before(problem, label, folder, source)) is not None:
        return stored, None
    validation, test, models = [], [], []
    for place, seed in enumerate(how.seeds):
        tick(f"{label}, seed {seed} ({place + 1} of {len(how.seeds)})")
        copied = copy.deepcopy(model)
        problem.finetune(copied, how.units, seed_of(problem.settings.seed, 4, seed), lr_factor=how.lr_factor)
        validation.append(problem.validate(copied))
        test.append(problem.test(copied))
        models.append(copied.eval())
    best = _best(problem, validation)
    with problem.timed("evaluation"):
        latency = latency_ms(models[best], example_input(problem.data).to(problem.device))
    found = Confirmed(tuple(validation), tuple(test), best, latency, costs)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"key": _key(problem, source), **asdict(found)}
    write_atomic(folder / f"{label}.json", json.dumps(record, indent=1))
    return found, models[best]


def _best(problem: Problem, validation: list[dict[str, float]]) -> int:
    quality = problem.settings.objectives.quality
    return max(range(len(validation)), key=lambda i: (problem.sign * validation[i][quality], -validation[i]["loss"]))


def confirmed_before(problem: Problem, label: str, folder: Path, source: Any) -> Confirmed | None:
    """What an earlier run measured of the same model in the same way."""
    path = folder / f"{label}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if found.pop("key") != _key(problem, source):
        return None
    metrics = {name: tuple(found[name]) for name in ("validation", "test")}
    return Confirmed(**{**found, **metrics, "costs": Costs(**found["costs"])})


def _key(problem: Problem, source: Any) -> str:
    how, finetune = problem.settings.phases.confirm, problem.settings.phases.finetune
    rest = finetune.model_dump(mode="json", exclude={"optimizer", "scheduler"})
    return digest([source, how.seeds, how.units, how.lr_factor, rest, finetune.optimizer, finetune.scheduler])
