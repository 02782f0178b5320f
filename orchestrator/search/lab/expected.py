"""How long a job will take.

Its work is counted, and multiplied by the time that a few of its own steps took on this machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_modules.data.contract import sample_index
from lightning_modules.phases.distillation import Distillation, distilled, teacher
from lightning_modules.phases.fit import DivergedError, evaluate, fit
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Structure
from lightning_modules.tasks.contract import build_task, divergence_of
from lightning_modules.tasks.whole import network_of
from orchestrator.search.lab.dense import RECORD, dense_folder
from orchestrator.search.lab.lab import optimization
from orchestrator.search.space.allocation import cut_anyhow, evenly
from orchestrator.settings import Settings

TIMED_STEPS = (3, 60)
"""Number of training steps that are timed, least and most: about two seconds of them."""
CHOSEN = 2 / 3
"""Share of the trials that are confirmed."""
MEMBERS = 2 / 3
"""Share of the confirmed models that stay on the front."""


@dataclass(frozen=True)
class ModelSeconds:
    """Seconds that work with one model takes.

    That is: a training step, a call of the trainer, a pass over validation and over test data.
    """

    step: float
    call: float
    validation: float
    test: float

    def toward(self, other: ModelSeconds, share: float) -> ModelSeconds:
        """Of a model at `share` of the way to the other one."""
        seconds = {}
        for name, own in vars(self).items():
            difference = getattr(other, name) - own
            seconds[name] = max(0.0, own + share * difference)
        return ModelSeconds(**seconds)


def expected_seconds(
    settings: Settings,
    model: nn.Module,
    data: Any,
    structure: Structure,
    device: torch.device,
    begun: float,
) -> dict[str, float]:
    """Seconds by phase of the whole job.

    `begun` are the seconds until the model's structure was known.
    """
    dense = prices(settings, model, data, device)
    pruned = _pruned(settings, model, data, structure, device, dense)
    steps = settings.trainer.for_training().steps_per_epoch(data.train_batches(0))
    work = _Work(settings, dense, pruned, steps)
    trained = (dense_folder(settings) / RECORD).exists()
    begin = {
        "start-up": begun,
        "dense training": 0.0 if trained else work.dense_training(),
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
    """The work of the job, at the `dense` model's prices and at those of the mean `pruned` one.

    `epoch` is the number of optimizer steps in an epoch.
    """

    settings: Settings
    dense: ModelSeconds
    pruned: ModelSeconds
    epoch: int

    @property
    def chosen(self) -> int:
        """How many models are confirmed."""
        expected = round(CHOSEN * self.settings.study.n_trials)
        return max(1, min(self.settings.phases.confirm.max_models, expected))

    def dense_training(self) -> float:
        epochs = self.settings.phases.train.epochs
        dense = self.dense
        per_epoch = self.epoch * dense.step + dense.validation
        return dense.call + epochs * per_epoch + dense.validation

    def profile(self, groups: int) -> float:
        profile = self.settings.phases.profile
        if not self.settings.space.build().needs_profile:
            return 0.0
        # each batch is passed twice: for the norm statistics, then for the divergence
        passes = groups * 2 * profile.batches
        return passes * self.pruned.step / 3.0

    def search(self) -> float:
        space = self.settings.space.build()
        study = self.settings.study
        low, high = _ends(getattr(space, "rounds", (1, 1)))
        if study.budget is not None:
            steps = study.budget.amount * self.epoch
            return self.finetuning(self.pruned, steps / self.settings.phases.finetune.round_steps)
        targets = min(self.settings.search.chain.targets, study.n_trials)
        pruning_steps = _ends(getattr(space, "steps", (1, 1)))
        calls = min(sum(pruning_steps) / 2, high)
        around = self.finetuning(self.pruned, (low + high) / 2, calls)
        chain = targets * self.finetuning(self.pruned, high)
        return chain + (study.n_trials - targets) * around

    def confirming(self, one: ModelSeconds) -> float:
        """One model, finetuned for each seed without validation in between."""
        confirm = self.settings.phases.confirm
        passes = (1 - confirm.rounds) * one.validation + one.test
        return len(confirm.seeds) * (self.finetuning(one, confirm.rounds) + passes)

    def baselines(self) -> float:
        """Ladders trained as long as the chain and what follows it.

        A ladder has one step for each member of the front.
        """
        confirm = self.settings.phases.confirm
        chain = self.settings.search.chain
        members = max(1, round(MEMBERS * self.chosen))
        _, high = _ends(getattr(self.settings.space.build(), "rounds", (1, 1)))
        rounds = max(members, high * (chain.targets + 1))
        ladder = self.finetuning(self.pruned, rounds, members) - rounds * self.pruned.validation
        confirmed = min(confirm.max_baseline_models, members) * self.confirming(self.pruned)
        return len(confirm.baselines) * (ladder + confirmed)

    def finetuning(self, one: ModelSeconds, rounds: float, calls: float = 1.0) -> float:
        """Recalibrated after each pruning step, and validated after each round."""
        finetune = self.settings.phases.finetune
        recalibration = finetune.recalibration_batches * one.step / 3.0
        per_round = finetune.round_steps * one.step + one.validation
        per_call = one.call + recalibration
        return rounds * per_round + calls * per_call


def _pruned(
    settings: Settings,
    model: nn.Module,
    data: Any,
    structure: Structure,
    device: torch.device,
    dense: ModelSeconds,
) -> ModelSeconds:
    """Prices at the mean of the chain's log-uniform FLOPs ratios.

    They lie between those of a model of the chain's middle and those of the dense one.
    """
    if not structure.groups:
        return dense
    largest = settings.search.chain.largest
    smallest = settings.search.chain.smallest
    middle = math.sqrt(largest * smallest)
    mean = (largest - smallest) / math.log(largest / smallest)
    cut = cut_anyhow(copy_of(model), structure, evenly(structure, middle))
    share = (mean - middle) / (1.0 - middle)
    return prices(settings, cut, data, device).toward(dense, share)


def prices(settings: Settings, model: nn.Module, data: Any, device: torch.device) -> ModelSeconds:
    """Prices timed with the trainer itself and with batches as the data gives them.

    One step warms up.
    """
    options = settings.trainer.for_training()
    timed = partial(fit, rounds=1, device=device, options=options)

    def new_task() -> Any:
        return build_task(settings.task, copy_of(model), data)

    def fitted(steps: int) -> float:
        task = new_task()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return 0.0
        finetune = optimization(settings.phases.finetune)
        begin = time.perf_counter()
        # the time of steps that diverge is that of others
        with suppress(DivergedError), distilled(task, _teaching(settings, task, data)):
            timed(task, data.train_batches(0), finetune, round_steps=steps)
        return time.perf_counter() - begin

    def evaluated(batches: _Some) -> float:
        task = new_task()
        begin = time.perf_counter()
        evaluate(task, batches, device, options)
        return time.perf_counter() - begin

    one = min(fitted(1), fitted(1))
    least, most = TIMED_STEPS
    guess = max(1e-3, (fitted(1 + least) - one) / least)
    steps = min(most, max(least, round(2.0 / guess)))
    step = max(1e-5, (fitted(1 + steps) - one) / steps)
    some = _Some(data.val_dataloader())
    first = min(evaluated(some.first), evaluated(some.first))
    further = max(0.0, evaluated(some) - first) / max(1, len(some) - 1)
    validation = first + (_count(data.val_dataloader()) - 1) * further
    test = first + (_count(data.test_dataloader()) - 1) * further
    return ModelSeconds(step, max(0.0, one - step), validation, test)


def _teaching(settings: Settings, task: LightningModule, data: Any) -> Distillation | None:
    """Distillation as finetuning has it.

    The dense outputs are looked up where samples have an index; else they take one more pass
    through a model.
    """
    distillation = settings.phases.finetune.distillation
    divergence = divergence_of(task)
    if distillation is None or distillation.weight == 0.0 or divergence is None:
        return None
    network: Any = copy_of(network_of(task))
    run_along = teacher(network, None)
    looked_up = dict[int | None, Any]()

    def teach(batch: Any, inputs: Inputs) -> Any:
        if sample_index(data, batch) is None:
            return run_along(batch, inputs)
        if inputs.batch not in looked_up:
            looked_up[inputs.batch] = run_along(batch, inputs)
        return looked_up[inputs.batch]

    return Distillation(teach, divergence, distillation.temperature, distillation.weight)


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
    """The number of batches; of the first few where the loader has no length."""
    return len(batches) if hasattr(batches, "__len__") else len(_Some(batches))


def _ends(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[-1])
