"""The optimizer of a user's own module: what its `configure_optimizers` gives, as one optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import LightningModule
from torch.optim import Optimizer, lr_scheduler

from lightning_modules.errors import ConfigError

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Keys of a parameter group that are learning rates; schedulers add all but the first."""


def own_optimizer(task: LightningModule, lr_factor: float = 1.0) -> Any:
    """What the task's `configure_optimizers` returns, with all learning rates times a factor.

    Errors: ConfigError for a task without one, for several optimizers, and for a scheduler that
    needs a metric.
    """
    name = type(task).__name__
    # the instance's may be the phase's own
    if type(task).configure_optimizers is LightningModule.configure_optimizers:
        raise ConfigError(
            f"optimizer=own takes the optimizer of the task; {name} has no configure_optimizers: "
            "name one, as in phases.finetune.optimizer={_target_: torch.optim.AdamW, lr: 1.0e-3}"
        )
    configured = type(task).configure_optimizers(task)
    optimizers, schedulers = _parts(configured)
    if len(optimizers) != 1:
        kinds = ", ".join([type(optimizer).__name__ for optimizer in optimizers]) or "none"
        raise ConfigError(
            f"{name}.configure_optimizers must give one optimizer, whose parameter groups may "
            f"differ; it gives {kinds}: join them into one, or name one in place of optimizer=own"
        )
    for scheduler in schedulers:
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                f"{name}.configure_optimizers gives ReduceLROnPlateau, which needs a metric after "
                "each epoch; validation comes after each round: take another scheduler"
            )
    if lr_factor != 1.0:
        _scale(optimizers[0], schedulers, lr_factor)
    return configured


def _parts(configured: Any) -> tuple[list[Any], list[Any]]:
    """The optimizers and schedulers in any of the forms that Lightning takes."""
    if isinstance(configured, Optimizer):
        return [configured], []
    if isinstance(configured, Mapping):
        given = configured.get("lr_scheduler")
        return [configured["optimizer"]], [] if given is None else [_scheduler(given)]
    if not isinstance(configured, Sequence):
        return [], []
    if len(configured) == 2 and all(isinstance(part, Sequence) for part in configured):
        return list(configured[0]), [_scheduler(given) for given in configured[1]]
    optimizers: list[Any] = []
    schedulers: list[Any] = []
    for part in configured:
        inner_optimizers, inner_schedulers = _parts(part)
        optimizers += inner_optimizers
        schedulers += inner_schedulers
    return optimizers, schedulers


def _scheduler(given: Any) -> Any:
    return given["scheduler"] if isinstance(given, Mapping) else given


def _scale(optimizer: Optimizer, schedulers: Sequence[Any], factor: float) -> None:
    for group in optimizer.param_groups:
        for key in RATES:
            if key in group:
                group[key] = factor * group[key]
    for scheduler in schedulers:
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [factor * rate for rate in scheduler.base_lrs]
