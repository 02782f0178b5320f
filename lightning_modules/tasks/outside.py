"""The steps of a task outside of a Trainer: to see one batch go through them."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger

from lightning_modules.quiet import quiet


@contextmanager
def outside_trainer(task: LightningModule) -> Iterator[dict[str, Any]]:
    """Inside the `with` block the task logs into the mapping that is given.

    `self.trainer` is one that has not begun.
    """
    logged: dict[str, Any] = {}

    def log(name: str, value: Any, *rest: Any, **more: Any) -> None:
        logged[name] = value

    def log_dict(dictionary: Mapping[str, Any], *rest: Any, **more: Any) -> None:
        logged.update(dictionary)

    trainer = task._trainer
    task.log = log  # type: ignore[method-assign]
    task.log_dict = log_dict  # type: ignore[method-assign, assignment]
    task._trainer = trainer or _idle_trainer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield logged
    finally:
        del task.log, task.log_dict
        task._trainer = trainer


@functools.cache
def _idle_trainer() -> Trainer:
    with quiet():
        return Trainer(
            accelerator="cpu",
            logger=DummyLogger(),
            enable_checkpointing=False,
            enable_progress_bar=False,
        )


def step_arguments(step: Callable[..., Any], batch: Any) -> tuple[Any, ...]:
    """What a step is called with for the first batch: Lightning's steps may leave out the index."""
    parameters = inspect.signature(step).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = [parameter for parameter in parameters if parameter.kind in positional]
    alone = len(takes) == 1 and len(takes) == len(list(parameters))
    return (batch,) if alone else (batch, 0)
