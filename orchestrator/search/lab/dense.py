"""The dense baseline: trained or loaded once, and shared by all studies.

It is stored under the hash of what made it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from pytorch_lightning import LightningModule
from safetensors.torch import save
from torch import Tensor, nn

from lightning_modules.data.contract import check_data
from lightning_modules.errors import ConfigError, DataError
from lightning_modules.phases.fit import OnRound, evaluate, fit
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import digest
from lightning_modules.tasks.contract import (
    build_task,
    check_outputs,
    check_task,
    check_training,
    inputs_of,
)
from orchestrator.files import require_writable, write_atomic, writing
from orchestrator.redact import redact_tree
from orchestrator.search.directions import task_directions
from orchestrator.search.lab.checkpoint import fill_from
from orchestrator.search.lab.lab import Timed, optimization, seed_everything
from orchestrator.search.lab.made_up import metrics_of
from orchestrator.search.plans.lineage import tensors
from orchestrator.search.plans.names import WEIGHTS as WEIGHTS
from orchestrator.search.trials.failures import SMALLER, needed
from orchestrator.settings import Settings
from orchestrator.stored import read_cache, read_json, read_weights, sha256_of, tell_damaged

RECORD = "dense.json"
"""File of a dense model beside its weights: its metrics."""
REWIND = "rewind.safetensors"
"""File of a dense model beside its weights: its weights in an early state."""
ANEW = "delete its folder, and the dense model is made anew"


def dense_folder(settings: Settings) -> Path:
    """Where the dense model of this configuration is kept."""
    return settings.study.baselines / _name(settings, settings.phases.train.checkpoint)


def build_model(settings: Settings, data: Any) -> nn.Module:
    """The model as configured, untrained or with its checkpoint.

    It is checked against the task and a validation batch. Errors: DataError for a checkpoint that
    is missing or does not fit; ConfigError for a model that cannot be built or does not take the
    data.
    """
    model = unchecked_model(settings)
    check_data(data)
    # a copy: a step changes the metrics of a module that holds its network
    task = build_task(settings.task, copy_of(model), data)
    check_task(task)
    check_outputs(task, next(iter(data.val_dataloader())))
    check_training(task, next(iter(data.train_batches(settings.seed))))
    return model.train()


def unchecked_model(settings: Settings) -> nn.Module:
    """The model as configured, untrained or with its checkpoint.

    Errors: DataError, ConfigError as `build_model`.
    """
    seed_everything(settings.seed)
    model: nn.Module = settings.model.build()
    if settings.phases.train.checkpoint is not None:
        fill_from(settings.phases.train.checkpoint, model)
    return model


def check_own_optimizer(
    settings: Settings, model: nn.Module, data: Any, device: torch.device
) -> None:
    """Make a step on a copy of the model with each optimizer that the task brings.

    Errors: ConfigError for one that the phases cannot use, before anything is trained.
    """
    for phase in (settings.phases.train, settings.phases.finetune):
        if phase.own:
            task = build_task(settings.task, copy_of(model), data)
            batches = data.train_batches(0)
            fit(task, batches, optimization(phase), rounds=1, round_steps=1, device=device)


def example_of(settings: Settings, model: nn.Module, data: Any) -> Inputs:
    """The inputs with which the task calls the network.

    They are those of the first sample of the validation data.
    """
    task = build_task(settings.task, model, data)
    return inputs_of(task, next(iter(data.val_dataloader()))).first()


def fresh_model(settings: Settings, seed: int) -> nn.Module:
    """The architecture with weights drawn from `seed`, whatever weights it usually begins with."""
    seed_everything(seed)
    model: nn.Module = settings.model.without("weights", "pretrained").build()
    return model.eval()


def dense_curve(settings: Settings) -> list[float]:
    """The dense model's quality on validation data after each epoch of its training.

    Empty where it was not trained here, or by an earlier version.
    """

    def parsed(record: Mapping[str, Any]) -> list[float]:
        return [float(quality) for quality in record.get("curve", ())]

    return read_cache(dense_folder(settings) / RECORD, parsed) or []


def rewound_model(settings: Settings, model: nn.Module) -> nn.Module | None:
    """A copy of `model` with the weights it had after `phases.train.rewind_epoch`.

    None where no such epoch is asked for.
    Errors: ConfigError where the dense model was loaded, not trained, so that there is nothing to
    go back to.
    """
    train = settings.phases.train
    if train.rewind_epoch is None:
        return None
    path = dense_folder(settings) / REWIND
    if not path.exists():
        raise ConfigError(
            f"phases.train.rewind_epoch={train.rewind_epoch} needs a dense model trained here for "
            f"at least as many epochs; phases.train.epochs is {train.epochs}"
        )
    twin = copy_of(model)
    digests = read_json(path.with_name(RECORD), ANEW).get("sha256", {})
    weights = read_weights(path, model.state_dict(), ANEW, digests.get(REWIND))
    _fill(twin, weights, str(path))
    return twin.eval()


@dataclass(frozen=True)
class DenseTraining:
    """The training of a dense model: its data, device and memory format.

    `on_epoch` is told of each epoch. `curve` collects the quality after each epoch.
    """

    settings: Settings
    data: Any
    device: torch.device
    timed: Timed
    on_epoch: OnRound
    memory_format: str = "contiguous"
    curve: list[float] = field(default_factory=list)

    def make(self, model: nn.Module) -> dict[str, float]:
        """Train the model and keep it in its folder; return its validation metrics."""
        if self.settings.phases.train.rewind_epoch == 0:
            self._keep_early(model)
        if self.settings.made_up is None:
            metrics = self._trained(model)
        else:
            metrics = self._made_up(model)
        quality = self.settings.objectives.quality
        if quality not in metrics:
            raise ConfigError(
                f"the task's validation must log '{quality}', the quality (objectives.quality); "
                f"it logs {sorted(metrics)}"
            )
        self._keep(model, metrics)
        return metrics

    def _keep_early(self, model: nn.Module) -> None:
        """Keep the weights that a pruned model may go back to."""
        write_atomic(dense_folder(self.settings) / REWIND, save(tensors(model)))

    def _trained(self, model: nn.Module) -> dict[str, float]:
        settings = self.settings
        data = self.data
        if settings.phases.train.epochs > 0:
            task = build_task(settings.task, model, data)
            batches = data.train_batches(settings.seed)
            with (
                needed("training of the dense model", SMALLER.format("train")),
                self.timed("dense training"),
            ):
                self._fit(model, task, batches)
        with self.timed("evaluation"):
            task = build_task(settings.task, model, data)
            return evaluate(
                task, data.val_dataloader(), self.device, settings.trainer.for_training()
            )

    def _fit(self, model: nn.Module, task: LightningModule, batches: Any) -> None:
        """Train for all epochs, and keep the weights of an early one where that is asked for."""
        train = self.settings.phases.train
        options = self.settings.trainer.for_training()

        def on_round(epoch: int, metrics: dict[str, float]) -> bool:
            if epoch == train.rewind_epoch:
                self._keep_early(model)
            self.curve.append(metrics.get(self.settings.objectives.quality, math.nan))
            return self.on_epoch(epoch, metrics)

        fit(
            task,
            batches,
            optimization(train),
            rounds=train.epochs,
            round_steps=options.steps_per_epoch(batches),
            device=self.device,
            val=self.data.val_dataloader(),
            on_round=on_round,
            memory_format=self.memory_format,
            options=options,
        )

    def _made_up(self, model: nn.Module) -> dict[str, float]:
        train = self.settings.phases.train
        if train.rewind_epoch is not None:
            self._keep_early(model)
        metrics = metrics_of(task_directions(self.settings), 1.0, train.epochs)
        self.on_epoch(train.epochs, metrics)
        return metrics

    def _keep(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        folder = dense_folder(self.settings)
        settings = self.settings
        write_atomic(folder / WEIGHTS, save(tensors(model)))
        files = [name for name in (WEIGHTS, REWIND) if (folder / name).exists()]
        record = {
            "model": redact_tree(settings.model.to_json()),
            "data": redact_tree(settings.data.to_json()),
            "validation": metrics,
            "curve": self.curve,
            "sha256": {name: sha256_of(folder / name) for name in files},
        }
        write_atomic(folder / RECORD, json.dumps(record, indent=1))


def train_dense(training: DenseTraining, model: nn.Module) -> tuple[nn.Module, dict[str, float]]:
    """The model trained, with its validation metrics.

    It is read back where the same recipe was run before. A baseline whose files are damaged is
    named and trained anew: it follows from its recipe. Of several processes that need it at once
    one trains it, the others wait.
    """
    settings = training.settings
    folder = dense_folder(settings)
    metrics = _read_back(settings, model, folder)
    if metrics is None:
        require_writable(folder)
        with _alone(folder):
            # another process may have made it meanwhile
            metrics = _read_back(settings, model, folder)
            if metrics is None:
                metrics = training.make(model)
    return model.to(training.device).eval(), metrics


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out for the same folder; the lock of a killed process is free."""
    lock = FileLock(folder.with_suffix(".lock"))
    with writing(folder):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_back(settings: Settings, model: nn.Module, folder: Path) -> dict[str, float] | None:
    """Fill the model from a baseline and return its metrics.

    None where there is no baseline, or it is damaged.
    """
    if not (folder / RECORD).exists():
        return None
    try:
        weights, metrics = _kept(folder, model, settings)
    except DataError as error:
        tell_damaged(folder, error)
        return None
    _fill(model, weights, str(folder))
    return metrics


def _kept(
    folder: Path, model: nn.Module, settings: Settings
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and validation metrics of a baseline, all of its files checked.

    Older records have no digests.
    Errors: DataError for a file that is damaged or does not fit the model.
    """
    record = read_json(folder / RECORD, ANEW)
    try:
        metrics = {str(name): float(value) for name, value in record["validation"].items()}
        digests = record.get("sha256", {})
        early_digest = digests.get(REWIND)
        digest_of_weights = digests.get(WEIGHTS)
        # raises KeyError where the quality is missing
        metrics[settings.objectives.quality]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{folder / RECORD} must have the validation metrics of the dense model; {ANEW}"
        ) from error
    state = model.state_dict()
    if (folder / REWIND).exists():
        read_weights(folder / REWIND, state, ANEW, early_digest)
    weights = read_weights(folder / WEIGHTS, state, ANEW, digest_of_weights)
    return weights, metrics


def _name(settings: Settings, checkpoint: Path | None) -> str:
    """The recipe's hash.

    A checkpoint counts by its content, so that a new file under an old name is a new baseline.
    """
    if checkpoint is None:
        return settings.dense_digest()
    return digest([settings.dense_digest(), sha256_of(checkpoint)])


def _fill(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DataError(
            f"the weights of {where} do not fit the model: {' '.join(lines[1:4]).strip()}"
        ) from error
