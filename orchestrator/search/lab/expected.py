"""How long a job will take: what it does, counted, times what a few of its own steps took on this
machine.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_modules.data.contract import sample_index
from lightning_modules.phases.distillation import Distillation, distilled, teacher
from lightning_modules.phases.fit import evaluate, fit
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Structure
from lightning_modules.tasks.contract import build_task, divergence_of
from orchestrator.search.lab.dense import RECORD, dense_folder
from orchestrator.search.lab.lab import optimization
from orchestrator.search.space.allocation import cut_anyhow, evenly
from orchestrator.settings import Settings

TIMED_STEPS = (3, 60)
"""Training steps that are timed, least and most: two seconds of them."""
CHOSEN, MEMBERS = 2 / 3, 2 / 3
"""Of the trials that many are confirmed, and of those that many stay on the front."""


@dataclass(frozen=True)
class ModelSeconds:
    """Seconds of one model's: a training step, a call of the trainer, a pass over validation and
    over test data.
    """

    step: float
    call: float
    validation: float
    test: float

    def toward(self, other: ModelSeconds, share: float) -> ModelSeconds:
        """Of a model at `share` of the way to the other one."""
        mine, others = vars(self), vars(other)
        return ModelSeconds(
            **{name: max(0.0, mine[name] + share * (others[name] - mine[name])) for name in mine}
        )


def expected_seconds(
    settings: Settings,
    model: nn.Module,
    data: Any,
    structure: Structure,
    device: torch.device,
    begun: float,
) -> dict[str, float]:
    """Seconds by phase of the whole job; `begun` are those until the model's structure is known, as
    here.
    """
    dense = prices(settings, model, data, device)
    pruned = _pruned(settings, model, data, structure, device, dense)
    work = _Work(settings, dense, pruned, len(data.train_batches(0)))
    there = (dense_folder(settings) / RECORD).exists()
    begin = {
        "start-up": begun,
        "dense training": 0.0 if there else work.dense_training(),
        "profile": work.profile(len(structure.groups)),
    }
    budget = settings.study.budget
    if budget is not None and budget.measure == "seconds":
        return {**begin, "search and confirmation": max(0.0, budget.amount - sum(begin.values()))}
    return {
        **begin,
        "search": work.search() / settings.workers,
        "confirmation": work.chosen * work.confirming(pruned) + work.confirming(dense),
        "baselines": work.baselines(),
    }


@dataclass(frozen=True)
class _Work:
    """What the job does, at the `dense` model's prices and at those of the mean `pruned` one."""

    settings: Settings
    dense: ModelSeconds
    pruned: ModelSeconds
    epoch: int
    """Training batches in one."""

    @property
    def chosen(self) -> int:
        """How many models are confirmed."""
        return max(
            1,
            min(
                self.settings.phases.confirm.max_models,
                round(CHOSEN * self.settings.study.n_trials),
            ),
        )

    def dense_training(self) -> float:
        epochs, one = self.settings.phases.train.epochs, self.dense
        return one.call + epochs * (self.epoch * one.step + one.validation) + one.validation

    def profile(self, groups: int) -> float:
        how = self.settings.phases.profile
        passes = groups * len(how.ratios) * (how.recalibration_batches + how.batches)
        return passes * self.pruned.step / 3.0 if self.settings.space.build().needs_profile else 0.0

    def search(self) -> float:
        space, budget = self.settings.space.build(), self.settings.study.budget
        low, high = _ends(getattr(space, "rounds", (1, 1)))
        if budget is not None:
            steps = budget.amount * self.epoch
            return self.finetuning(self.pruned, steps / self.settings.phases.finetune.round_steps)
        rungs = min(self.settings.search.chain.targets, self.settings.study.n_trials)
        calls = min(sum(_ends(getattr(space, "steps", (1, 1)))) / 2, high)
        around = self.finetuning(self.pruned, (low + high) / 2, calls)
        return (
            rungs * self.finetuning(self.pruned, high)
            + (self.settings.study.n_trials - rungs) * around
        )

    def confirming(self, one: ModelSeconds) -> float:
        """One model, finetuned for each seed without a look at validation data between."""
        how = self.settings.phases.confirm
        looks = (1 - how.rounds) * one.validation + one.test
        return len(how.seeds) * (self.finetuning(one, how.rounds) + looks)

    def baselines(self) -> float:
        """Ladders trained as long as the chain and what follows it, one rung for each member of the
        front.
        """
        how, chain = self.settings.phases.confirm, self.settings.search.chain
        members = max(1, round(MEMBERS * self.chosen))
        _, high = _ends(getattr(self.settings.space.build(), "rounds", (1, 1)))
        rounds = max(members, high * (chain.targets + 1))
        ladder = self.finetuning(self.pruned, rounds, members) - rounds * self.pruned.validation
        confirmed = min(how.max_baseline_models, members) * self.confirming(self.pruned)
        return len(how.baselines) * (ladder + confirmed)

    def finetuning(self, one: ModelSeconds, rounds: float, calls: float = 1.0) -> float:
        """Recalibrated after each pruning step, and validated after each round."""
        how = self.settings.phases.finetune
        recalibration = how.recalibration_batches * one.step / 3.0
        return rounds * (how.round_steps * one.step + one.validation) + calls * (
            one.call + recalibration
        )


def _pruned(
    settings: Settings,
    model: nn.Module,
    data: Any,
    structure: Structure,
    device: torch.device,
    dense: ModelSeconds,
) -> ModelSeconds:
    """At the mean of the chain's log-uniform FLOPs ratios, between a model of its middle and the
    dense one.
    """
    if not structure.groups:
        return dense
    largest, smallest = settings.search.chain.largest, settings.search.chain.smallest
    middle, mean = (
        math.sqrt(largest * smallest),
        (largest - smallest) / math.log(largest / smallest),
    )
    cut = cut_anyhow(copy.deepcopy(model), structure, evenly(structure, middle))
    return prices(settings, cut, data, device).toward(dense, (mean - middle) / (1.0 - middle))


def prices(settings: Settings, model: nn.Module, data: Any, device: torch.device) -> ModelSeconds:
    """Timed with the trainer itself and with batches as the data gives them, after one step to warm
    up.
    """

    def task() -> Any:
        return build_task(settings.task, copy.deepcopy(model), data)

    def fitted(steps: int) -> float:
        mine, how, begin = task(), optimization(settings.phases.finetune), time.perf_counter()
        with distilled(mine, _teaching(settings, mine, data)):
            fit(mine, data.train_batches(0), how, rounds=1, round_steps=steps, device=device)
        return time.perf_counter() - begin

    def evaluated(batches: _Some) -> float:
        mine, begin = task(), time.perf_counter()
        evaluate(mine, batches, device)
        return time.perf_counter() - begin

    one = min(fitted(1), fitted(1))
    guess = max(1e-3, (fitted(1 + TIMED_STEPS[0]) - one) / TIMED_STEPS[0])
    steps = min(TIMED_STEPS[1], max(TIMED_STEPS[0], round(2.0 / guess)))
    step = max(1e-5, (fitted(1 + steps) - one) / steps)
    some = _Some(data.val_dataloader())
    first = min(evaluated(some.first), evaluated(some.first))
    further = max(0.0, evaluated(some) - first) / max(1, len(some) - 1)
    val, test = (
        first + (_count(loader) - 1) * further
        for loader in (data.val_dataloader(), data.test_dataloader())
    )
    return ModelSeconds(step, max(0.0, one - step), val, test)


def _teaching(settings: Settings, task: LightningModule, data: Any) -> Distillation | None:
    """As finetuning has it: a look-up where samples have an index, else one more pass through a
    model.
    """
    how, divergence = settings.phases.finetune.distillation, divergence_of(task)
    if how is None or how.weight == 0.0 or divergence is None:
        return None
    network: Any = copy.deepcopy(task.model)
    run_along, looked_up = teacher(network, None), dict[int | None, Any]()

    def teach(batch: Any, inputs: Inputs) -> Any:
        if sample_index(data, batch) is None:
            return run_along(batch, inputs)
        if inputs.batch not in looked_up:
            looked_up[inputs.batch] = run_along(batch, inputs)
        return looked_up[inputs.batch]

    return Distillation(teach, divergence, how.temperature, how.weight)


class _Some:
    """The first few batches of a loader, as a loader."""

    def __init__(self, batches: Iterable[Any], most: int = 3) -> None:
        self.batches = list(islice(batches, most))

    @property
    def first(self) -> _Some:
        return _Some(self.batches, 1)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _count(batches: Any) -> int:
    """How many there are; the few that were looked at where nothing says."""
    return len(batches) if hasattr(batches, "__len__") else len(_Some(batches))


def _ends(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[-1])
