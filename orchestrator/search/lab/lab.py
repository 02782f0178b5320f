"""The laboratory of a study: everything that runs on a device."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.phases.distillation import Distillation, distilled
from lightning_modules.phases.fit import (
    OWN,
    OnRound,
    Optimization,
    evaluate,
    fit,
    run_test_steps,
)
from lightning_modules.phases.mixing import Mixing
from lightning_modules.phases.recalibration import recalibrate
from lightning_modules.phases.trainer_options import PLAIN, TrainerOptions
from lightning_modules.phases.watched import Check, Watched, never, watched
from lightning_modules.pruning.activations import ActivationPruning, activation_densities, attached
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.compensation import Compensator
from lightning_modules.pruning.inputs import Inputs, joined_batches
from lightning_modules.pruning.structure import Keep
from lightning_modules.pruning.thresholds import Scores
from lightning_modules.pruning.weights import densities
from lightning_modules.recipe import Recipe
from lightning_modules.tasks.contract import by_class_of, inputs_from
from lightning_modules.tasks.metrics import under_names_of
from lightning_modules.tasks.whole import Whole
from orchestrator.export.formats import Format
from orchestrator.search.lab.facts import Facts
from orchestrator.search.plans.lineage import weights_digest
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import ActivationSettings, OptimizerSettings, PhaseSettings

COMPENSATION_SAMPLES = 1024
"""Training samples that compensation is fitted on."""
CONFIRMING_RATE = 0.25
"""Learning rate of a confirmation as a multiple of the finetuning's.

It is small: a confirmation refines a model that is finetuned already.
"""

Timed = Callable[[str], AbstractContextManager[None]]
"""Charges the time inside a `with` block to a phase by name."""


@dataclass(frozen=True)
class Training:
    """One finetuning; None: as configured.

    With a `level` activations are pruned meanwhile. `round_steps` optimizer steps make a round.
    `distillation` is the weight of the dense outputs. `mixed` copies of the training data are
    learnt beside it. `accumulate` is the number of parts in which each batch is taken.
    """

    rounds: int
    seed: int
    round_steps: int | None = None
    lr_factor: float = 1.0
    level: float | None = None
    distillation: float | None = None
    accumulate: int = 1
    mixed: int | None = None
    callbacks: Sequence[Callback] = ()


@dataclass(frozen=True)
class Evaluated:
    """Metrics over some data by name, and the quality of each class where the task tells it."""

    metrics: dict[str, float]
    by_class: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchData:
    """Training and validation data only: test data is out of the search's reach.

    `train_batches` gives the batches of one pass, in an order that follows from a seed.
    """

    train_batches: Callable[[int], Any]
    validation: Callable[[], Any]


@dataclass(frozen=True)
class Lab:
    """Where the work of a search is done: train, recalibrate, validate, quantise.

    It cannot test. `task` makes of a network what Lightning trains. `fresh` gives the architecture
    with weights drawn from a seed. `activations` is how the method prunes activations, None where
    it does not. `check` is called at every batch. `mixing` exists where there is `distillation` of
    class outputs. `trainer` are the Trainer's options. `timed` charges time to a phase by name.
    `dense_scores` are kept by weights, method and seed.
    """

    facts: Facts
    data: SearchData
    task: Callable[[nn.Module], LightningModule]
    phases: PhaseSettings
    device: torch.device
    timed: Timed
    fresh: Callable[[int], nn.Module]
    activations: ActivationSettings | None = None
    seed: int = 0
    on_out_of_memory: Literal["halve", "fail"] = "halve"
    distillation: Distillation | None = None
    mixing: Mixing | None = None
    memory_format: str = "contiguous"
    trainer: TrainerOptions = PLAIN
    check: Check = never
    dense_scores: dict[tuple[str, str, int], Scores] = field(default_factory=dict, repr=False)
    _compensators: dict[tuple[str, int], Compensator] = field(default_factory=dict, repr=False)

    def activation(self, level: float | None) -> ActivationPruning | None:
        """Pruning of the inputs of all layers but the first; None where the plan has no level."""
        if self.activations is None or level is None:
            return None
        fed = tuple(self.facts.weight_names[1:])
        return ActivationPruning(self.activations.kind, level, fed)

    def density(
        self, model: nn.Module, sparse: Sequence[str], level: float | None
    ) -> dict[str, float]:
        """Share of nonzero factors of each tensor.

        This is the share of nonzero weights of each `sparse` tensor, times that of the activations
        it meets on validation data. Activations count where the method prunes them; a model without
        a level then counts with the zeros it has.
        """
        nonzero = densities(model, sparse)
        if self.activations is None:
            return nonzero
        with self.timed("evaluation"), attached(model, self.activation(level)):
            inputs = self.inputs(model, self.data.validation())
            fed = activation_densities(model, self.facts.weight_names, inputs, self.device)
        names = {**nonzero, **fed}
        return {name: nonzero.get(name, 1.0) * fed.get(name, 1.0) for name in names}

    def inputs(self, model: nn.Module, batches: Iterable[Any]) -> Iterator[Inputs]:
        """The inputs with which the task calls `model` on each batch, on the device.

        The check is called before each batch.
        """
        task = self.task(model).to(self.device)
        return inputs_from(task, watched(batches, self.check), self.device)

    def compensator(self, model: nn.Module, alive: Keep) -> Compensator:
        """Cuts from this model, which has the units `alive`, and compensates.

        That of the dense model is made once, as long as the weights are the same. All plans are
        compensated on the same samples.
        """
        if not alive.all():
            return self._compensator(model, alive)
        key = weights_digest(model), self.seed
        if key not in self._compensators:
            self._compensators.clear()
            self._compensators[key] = self._compensator(copy_of(model), alive)
        return self._compensators[key]

    def _compensator(self, model: nn.Module, alive: Keep) -> Compensator:
        seed = seed_of(self.seed, Stream.COMPENSATION)
        batches = self.inputs(model, self.data.train_batches(seed))
        samples = joined_batches(batches, COMPENSATION_SAMPLES)
        return Compensator(model, self.facts.structure.restrict(alive), samples, seed)

    def recalibrate(self, model: nn.Module, count: int, seed: int) -> None:
        with self.timed("recalibration"):
            inputs = self.inputs(model, self.data.train_batches(seed))
            recalibrate(model, inputs, count, self.device)

    def finetune(
        self, model: nn.Module, training: Training, on_round: OnRound | None = None
    ) -> int:
        """Finetune the model; return the rounds done.

        The result is reproducible from the training's seed on one CPU.
        """
        round_steps = training.round_steps or self.phases.finetune.round_steps
        if round_steps == 0:
            return self._untrained(model, training, on_round)
        task = self.task(model)
        batches, teaching = self._taught_batches(training)
        seed_everything(training.seed)
        with self.timed("finetune"), self._taught(model, task, training, teaching):
            return fit(
                task,
                self.data.train_batches(training.seed) if batches is None else batches,
                self._optimization(training.rounds * round_steps, training.lr_factor),
                rounds=training.rounds,
                round_steps=round_steps,
                device=self.device,
                val=self.data.validation(),
                on_round=on_round,
                callbacks=[*training.callbacks, Watched(self.check)],
                accumulate=training.accumulate,
                memory_format=self.memory_format,
                options=self.trainer,
            )

    def _untrained(self, model: nn.Module, training: Training, on_round: OnRound | None) -> int:
        """Validates once, in place of all rounds."""
        if on_round is not None:
            on_round(training.rounds, self.validate(model, training.level))
        return 0

    def _taught_batches(self, training: Training) -> tuple[Any, Distillation | None]:
        """Batches with mixed copies, and the distillation on them.

        The batches are None where there are no mixed copies.
        """
        teaching = self.distillation
        if teaching is None:
            return None, None
        if training.distillation is not None:
            teaching = replace(teaching, weight=training.distillation)
        copies = 0 if self.mixing is None else self._copies(training.mixed)
        if self.mixing is None or copies <= 0:
            return None, teaching
        batches, teacher = self.mixing(copies, training.seed)
        return batches, replace(teaching, teacher=teacher)

    @contextmanager
    def _taught(
        self,
        model: nn.Module,
        task: LightningModule,
        training: Training,
        teaching: Distillation | None,
    ) -> Iterator[None]:
        """Prunes activations at the training's level, and mixes the loss with the teacher's."""
        features = None if self.distillation is None else self.distillation.features
        tapped = nullcontext() if features is None else features.watching(model)
        with attached(model, self.activation(training.level)), tapped, distilled(task, teaching):
            yield

    def _copies(self, mixed: int | None) -> int:
        """Number of mixed copies; `mixed` as in `Training`."""
        distillation = self.phases.finetune.distillation
        if mixed is not None or distillation is None:
            return mixed or 0
        if distillation.mixed == "auto":
            return 0
        return distillation.mixed

    def _optimization(self, steps: int, lr_factor: float) -> Optimization:
        finetune = self.phases.finetune
        train = self.phases.train
        if finetune.lr == "finetune":
            return optimization(finetune, lr_factor)
        whole = train.epochs * self.steps_per_epoch()
        rewound = min(1.0, steps / max(1, whole))
        return replace(optimization(train, lr_factor), rewound=rewound)

    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""
        return self.trainer.steps_per_epoch(self.data.train_batches(0))

    def exported(
        self, model: nn.Module, form: Format, path: Path, level: float | None = None
    ) -> nn.Module:
        """The model as exported to `path`.

        It is calibrated on the batches that norms are recalibrated on.
        """
        count = max(1, self.phases.finetune.recalibration_batches)
        batches = list(islice(self.data.train_batches(self.seed), count))
        with self.timed("export"), attached(model, self.activation(level)):
            written = form.write(model, list(self.inputs(model, batches)), path)
        return model.around(written) if isinstance(model, Whole) else written

    def validate(self, model: nn.Module, level: float | None = None) -> dict[str, float]:
        """Metrics on validation data."""
        return self.measure(model, self.data.validation(), level).metrics

    def measure(self, model: nn.Module, batches: Any, level: float | None) -> Evaluated:
        """What the task says of the model on these batches, with activations pruned at `level`."""
        task = self.telling(model)
        with self.timed("evaluation"), attached(model, self.activation(level)):
            metrics = evaluate(task, batches, self.device, self.trainer)
        return Evaluated(metrics, by_class_of(task))

    def telling(self, model: nn.Module) -> LightningModule:
        """The task around a model, which tells of the classes of its next pass alone."""
        task: Any = self.task(model)
        if by_class_of(task):
            # a user's module is the same in each pass
            task.by_class = {}
        return cast(LightningModule, task)


@dataclass(frozen=True)
class FinalLab:
    """The laboratory of the end of a study.

    For models that are confirmed, test data is within reach.
    """

    lab: Lab
    test_batches: Callable[[], Any]

    @property
    def facts(self) -> Facts:
        return self.lab.facts

    def test(self, model: nn.Module, level: float | None = None) -> Evaluated:
        """Metrics on test data, under their names on validation data, and the quality by class.

        They are those of the task's `test_step` where it logs all that the study is after, else
        those of its `validation_step`.
        """
        goals = self.facts.goals
        lab = self.lab
        batches = self.test_batches()
        task = lab.telling(model)
        with lab.timed("evaluation"), attached(model, lab.activation(level)):
            logged = run_test_steps(task, batches, lab.device, lab.trainer)
        metrics = under_names_of(self.facts.dense_metrics, logged)
        if set(goals.signs) <= set(metrics):
            return Evaluated(metrics, by_class_of(task))
        return lab.measure(model, batches, level)


def optimization(settings: OptimizerSettings, lr_factor: float = 1.0) -> Optimization:
    """The optimization with a scaled learning rate.

    Errors: ConfigError where the rate is to be scaled and the optimizer's `lr` is not given.
    """
    optimizer = settings.optimizer
    if optimizer == OWN:
        return Optimization(OWN, clip_norm=settings.clip_norm, lr_factor=lr_factor)
    if lr_factor != 1.0:
        arguments = dict(optimizer.arguments)
        if "lr" not in arguments:
            raise ConfigError(
                "phases.finetune.optimizer.lr must be given: the confirmation scales it"
            )
        arguments["lr"] = lr_factor * arguments["lr"]
        optimizer = Recipe(optimizer.target, arguments)
    return Optimization(optimizer, settings.warmup, settings.clip_norm, settings.scheduler)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python: augmentation may draw from any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
