"""Training of a compiled network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule

from lightning_modules.pruning.clone import copy_of
from lightning_modules.tasks.contract import step_loss
from lightning_modules.tasks.whole import network_of


@contextmanager
def compiled(task: LightningModule, wanted: bool) -> Iterator[None]:
    """Inside the `with` block the task's network is compiled where that is wanted.

    What was compiled is forgotten afterwards: the next network has other shapes, and torch gives up
    on code that it has compiled for a few of them.
    """
    if not wanted:
        yield
        return
    network: Any = network_of(task)
    network.compile()
    try:
        yield
    finally:
        network._compiled_call_impl = None
        torch.compiler.reset()


def compile_fault(task: LightningModule, batch: Any) -> str:
    """Why a step of the task with a compiled network fails; empty where it does not.

    The task's own network is not trained.
    """
    twin = copy_of(task)
    try:
        with compiled(twin, True):
            step_loss(twin, batch).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the compilers raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""
