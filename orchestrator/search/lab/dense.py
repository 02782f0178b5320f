"""The dense baseline: trained or loaded once, kept under the hash of what made it, shared by all
studies.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lightning_modules.data.contract import check_data
from lightning_modules.errors import ConfigError, DataError
from lightning_modules.phases.fit import OnRound, evaluate, fit
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import digest
from lightning_modules.tasks.contract import build_task, check_outputs, inputs_of
from lightning_modules.tasks.metrics import directions_of
from orchestrator.files import require_writable, write_atomic, writing
from orchestrator.redact import redact_tree
from orchestrator.search.lab.lab import Timed, optimization, seed_everything
from orchestrator.search.lab.made_up import metrics_of
from orchestrator.search.plans.lineage import tensors
from orchestrator.search.plans.names import WEIGHTS as WEIGHTS
from orchestrator.search.trials.failures import SMALLER, needed
from orchestrator.settings import Settings
from orchestrator.stored import check_shapes, read_json, read_weights, sha256_of, tell_damaged

RECORD, REWIND = "dense.json", "rewind.safetensors"
"""Files of a dense model beside its weights: its metrics, and its weights in an early state."""
ANEW = "delete its folder, and the dense model is made anew"


def dense_folder(settings: Settings) -> Path:
    """Where the dense model of this configuration is kept."""
    return settings.study.baselines / _name(settings, settings.phases.train.checkpoint)


def build_model(settings: Settings, data: Any) -> nn.Module:
    """The model as configured, untrained or with its checkpoint, and checked against the task and a
    validation batch.

    Errors: DataError for a checkpoint that is missing or does not fit; ConfigError for a model that
    cannot be built or does not take the data.
    """
    seed_everything(settings.seed)
    model: nn.Module = settings.model.build()
    if settings.phases.train.checkpoint is not None:
        checkpoint = settings.phases.train.checkpoint
        _fill(model, _read(checkpoint, model), str(checkpoint))
    check_data(data)
    check_outputs(build_task(settings.task, model, data), next(iter(data.val_dataloader())))
    return model.train()


def example_of(settings: Settings, model: nn.Module, data: Any) -> Inputs:
    """What the task calls the network with for the first sample of the validation data."""
    task = build_task(settings.task, model, data)
    return inputs_of(task, next(iter(data.val_dataloader()))).first()


def fresh_model(settings: Settings, seed: int) -> nn.Module:
    """The architecture with weights drawn from `seed`, whatever it is usually begun with."""
    seed_everything(seed)
    model: nn.Module = settings.model.without("weights", "pretrained").build()
    return model.eval()


def rewound_model(settings: Settings, model: nn.Module) -> nn.Module | None:
    """A copy of `model` with the weights it had after `phases.train.rewind_epoch`; None where none
    were asked for.

    Errors: ConfigError where the dense model was loaded, not trained, so that there is nothing to
    go back to.
    """
    if settings.phases.train.rewind_epoch is None:
        return None
    path = dense_folder(settings) / REWIND
    if not path.exists():
        raise ConfigError(
            f"phases.train.rewind_epoch={settings.phases.train.rewind_epoch} needs a dense model "
            "trained here for at "
            f"least as many epochs; phases.train.epochs is {settings.phases.train.epochs}"
        )
    twin = copy.deepcopy(model)
    digests = read_json(path.with_name(RECORD), ANEW).get("sha256", {})
    _fill(twin, read_weights(path, model.state_dict(), ANEW, digests.get(REWIND)), str(path))
    return twin.eval()


@dataclass(frozen=True)
class DenseTraining:
    """The training of a dense model: on which data and device, in which memory format, who is told
    of its epochs.
    """

    settings: Settings
    data: Any
    device: torch.device
    timed: Timed
    on_epoch: OnRound
    memory_format: str = "contiguous"

    def make(self, model: nn.Module) -> dict[str, float]:
        """Train the model and keep it in its folder; its validation metrics."""
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
        """The weights that a pruned model may go back to."""
        write_atomic(dense_folder(self.settings) / REWIND, save(tensors(model)))

    def _trained(self, model: nn.Module) -> dict[str, float]:
        settings, data = self.settings, self.data
        how = settings.phases.train

        def on_round(epoch: int, metrics: dict[str, float]) -> bool:
            if epoch == how.rewind_epoch:
                self._keep_early(model)
            return self.on_epoch(epoch, metrics)

        if how.epochs > 0:
            task = build_task(settings.task, model, data)
            batches = data.train_batches(settings.seed)
            with (
                needed("training of the dense model", SMALLER.format("train")),
                self.timed("dense training"),
            ):
                fit(
                    task,
                    batches,
                    optimization(how),
                    rounds=how.epochs,
                    round_steps=len(batches),
                    device=self.device,
                    val=data.val_dataloader(),
                    on_round=on_round,
                    memory_format=self.memory_format,
                )
        with self.timed("evaluation"):
            task = build_task(settings.task, model, data)
            return evaluate(task, data.val_dataloader(), self.device)

    def _made_up(self, model: nn.Module) -> dict[str, float]:
        train = self.settings.phases.train
        if train.rewind_epoch is not None:
            self._keep_early(model)
        metrics = metrics_of(directions_of(self.settings.task), 1.0, train.epochs)
        self.on_epoch(train.epochs, metrics)
        return metrics

    def _keep(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        folder, settings = dense_folder(self.settings), self.settings
        write_atomic(folder / WEIGHTS, save(tensors(model)))
        files = [name for name in (WEIGHTS, REWIND) if (folder / name).exists()]
        record = {
            "model": redact_tree(settings.model.to_json()),
            "data": redact_tree(settings.data.to_json()),
            "validation": metrics,
            "sha256": {name: sha256_of(folder / name) for name in files},
        }
        write_atomic(folder / RECORD, json.dumps(record, indent=1))


def train_dense(training: DenseTraining, model: nn.Module) -> tuple[nn.Module, dict[str, float]]:
    """The model trained, with its validation metrics; read back where the same recipe was run
    before.

    A baseline whose files are damaged is named and trained anew: it follows from its recipe. Of
    several processes that need it at once one trains it, the others wait.
    """
    settings = training.settings
    folder = dense_folder(settings)
    metrics = _read_back(settings, model, folder)
    if metrics is None:
        require_writable(folder)
        with _alone(folder):  # another process may have made it meanwhile
            metrics = _read_back(settings, model, folder)
            if metrics is None:
                metrics = training.make(model)
    return model.to(training.device).eval(), metrics


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process is inside for the same folder; the lock of a killed one is free."""
    lock = FileLock(folder.with_suffix(".lock"))
    with writing(folder):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_back(settings: Settings, model: nn.Module, folder: Path) -> dict[str, float] | None:
    """Fill the model from a baseline and give its metrics; None where there is none, or it is
    damaged.
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
    """Weights and validation metrics of a baseline, all of its files checked; older records have no
    digests.

    Errors: DataError for a file that is damaged or does not fit the model.
    """
    record = read_json(folder / RECORD, ANEW)
    try:
        metrics = {str(name): float(value) for name, value in record["validation"].items()}
        digests = {name: record.get("sha256", {}).get(name) for name in (WEIGHTS, REWIND)}
        metrics[settings.objectives.quality]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{folder / RECORD} must have the validation metrics of the dense model; {ANEW}"
        ) from error
    if (folder / REWIND).exists():
        read_weights(folder / REWIND, model.state_dict(), ANEW, digests[REWIND])
    return read_weights(folder / WEIGHTS, model.state_dict(), ANEW, digests[WEIGHTS]), metrics


def _name(settings: Settings, checkpoint: Path | None) -> str:
    """The recipe's hash; a checkpoint counts by its content, so that a new file under an old name
    is a new baseline.
    """
    if checkpoint is None:
        return settings.dense_digest()
    return digest([settings.dense_digest(), sha256_of(checkpoint)])


def _read(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """A state dict: safetensors, torch.save of tensors, or a Lightning checkpoint; nothing in it
    can run code.

    Tensors stay in the file until they are copied into the model, so that a file of any size costs
    what the model does.
    """
    if not path.is_file():
        raise DataError(f"phases.train.checkpoint must be a file; {path} does not exist")
    if path.suffix == ".safetensors":
        check_shapes(
            path, model.state_dict(), "take the checkpoint of this model (phases.train.checkpoint)"
        )
        whole: dict[str, Tensor] = load_file(path)
        return whole
    mappable = _mappable(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise DataError(
            f"phases.train.checkpoint must hold tensors only; {path}: {error}"
        ) from error
    except Exception as error:  # torch's unpickler raises its own kinds for refused content
        raise DataError(
            f"{path} holds more than tensors and was refused; save model.state_dict()"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise DataError(f"{path} must hold a state dict (name -> tensor); save model.state_dict()")
    return {name.removeprefix("model."): value for name, value in state.items()}


def _mappable(path: Path) -> bool:
    """Errors: DataError for compressed entries of a zip file: torch writes none, and small ones
    unpack to any size.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(
            f"phases.train.checkpoint must be as torch.save writes it; {path}: {error}"
        ) from error
    if packed:
        raise DataError(
            f"phases.train.checkpoint must be as torch.save writes it; {path} has compressed "
            "entries"
        )
    return True


def _fill(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DataError(
            f"the weights of {where} do not fit the model: {' '.join(lines[1:4]).strip()}"
        ) from error
