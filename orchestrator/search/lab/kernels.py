"""What trains this model fastest on this CPU: the number of threads, and the memory format."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.errors import ConfigError
from lightning_modules.phases.formats import FORMATS, channels_last_fault
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.structure import Structure
from lightning_modules.recipe import digest
from lightning_modules.tasks.contract import build_task, step_loss
from orchestrator.files import write_atomic
from orchestrator.search.space.allocation import cut_anyhow, evenly
from orchestrator.settings import Settings
from orchestrator.stored import read_cache

COMPARED_STEPS = 4
"""Training steps timed for each choice, after one to warm up."""
MUCH_FASTER = 0.75
"""Largest ratio of a step's time to that in the usual memory format.

A gain this large neither comes nor goes with the noise of a busy machine.
"""


def choose_threads(
    settings: Settings, structure: Structure, model: nn.Module, data: Any, device: torch.device
) -> str:
    """For `threads=auto` on the CPU: measure, set torch's threads, and say what was measured.

    Otherwise it does nothing and returns "". It tries 1, 2, 4... up to the cores on a model cut
    evenly to the middle of the chain. The result is kept with the dense baselines, since the bits
    of a trial hang on it: delete the file to measure anew.
    """
    trained = any(parameter.requires_grad for parameter in model.parameters())
    if settings.threads != "auto" or device.type != "cpu" or not trained:
        return ""
    counts = [2**power for power in range((os.cpu_count() or 1).bit_length())]

    def measured() -> dict[str, float]:
        task = _middle(settings, structure, model, data)
        times = {}
        for count in counts:
            torch.set_num_threads(count)
            steps = list(_step_times(task, data))
            times[str(count)] = statistics.median(steps[1:])
        return times

    names = [str(count) for count in counts]
    milliseconds = _once(_path("threads", settings), names, measured)
    best = min(milliseconds, key=lambda count: milliseconds[count])
    torch.set_num_threads(int(best))
    return f"{best} of {os.cpu_count()}; a step with {_words(milliseconds)}"


def choose_memory_format(
    settings: Settings, structure: Structure, model: nn.Module, data: Any, device: torch.device
) -> tuple[str, str]:
    """The name of the format to train in, and what was measured to choose it.

    Only `memory_format=auto` measures, and only on the CPU. It takes channels last where that is
    `MUCH_FASTER`, as it is with depthwise convolutions, and does not try it where it would corrupt
    memory. The result is kept as the number of threads is.
    Errors: ConfigError where the model cannot be laid out as asked.
    """
    fault = channels_last_fault(model, device)
    dims = {parameter.dim() for parameter in model.parameters()}
    _check_layout(settings, data, fault, dims)
    if settings.memory_format != "auto":
        return settings.memory_format, ""
    trained = any(parameter.requires_grad for parameter in model.parameters())
    if device.type != "cpu" or 4 not in dims or 5 in dims or fault or not trained:
        return "contiguous", ""

    def measured() -> dict[str, float]:
        return _format_times(settings, structure, model, data)

    path = _path("memory-format", settings, torch.get_num_threads())
    milliseconds = _once(path, list(FORMATS), measured)
    faster = milliseconds["channels_last"] <= MUCH_FASTER * milliseconds["contiguous"]
    name = "channels_last" if faster else "contiguous"
    return name, f"{name}; a step with {_words(milliseconds)}"


def _check_layout(settings: Settings, data: Any, fault: str, dims: set[int]) -> None:
    """Checks that weights and data can lie in memory as asked.

    Errors: ConfigError where the model is to lie channels last and cannot, or the data lies so and
    may not.
    """
    asked = settings.memory_format == "channels_last"
    if fault and asked:
        raise ConfigError(
            f"memory_format=channels_last cannot be used here: {fault}; take memory_format=auto"
        )
    if fault:
        _require_rows(data, fault)
    if asked and 5 in dims:
        raise ConfigError(
            "memory_format=channels_last needs weights of up to 4 dimensions; the model has some "
            "of 5"
        )


def _format_times(
    settings: Settings, structure: Structure, model: nn.Module, data: Any
) -> dict[str, float]:
    """Shortest milliseconds of a step in each format.

    The formats take turns, as the machine's load changes.
    """
    steps = []
    for layout in FORMATS.values():
        task = _middle(settings, structure, model, data)
        task.to(memory_format=layout)
        steps.append(_step_times(task, data))
    turns = list(zip(*steps, strict=True))
    # the first turn warms up
    by_format = np.array(turns[1:]).min(0)
    return {name: float(by_format[index]) for index, name in enumerate(FORMATS)}


def _require_rows(data: Any, fault: str) -> None:
    """Checks that the data's images do not lie channels last in memory.

    Errors: ConfigError for images that do: convolutions would keep them so all through the model.
    """
    batch = next(iter(data.train_batches(0)))
    for leaf in pytree.tree_leaves(batch):
        if not isinstance(leaf, Tensor) or leaf.dim() != 4:
            continue
        if leaf.stride(1) < leaf.stride(3):
            raise ConfigError(
                f"the data's images lie channels last in memory, and {fault}; give them as "
                ".contiguous()"
            )


def _middle(
    settings: Settings, structure: Structure, model: nn.Module, data: Any
) -> LightningModule:
    """The task with a model of the middle of the chain, ready to train."""
    cut = copy_of(model)
    if structure.groups:
        cut = cut_anyhow(model, structure, evenly(structure, _middle_ratio(settings)))
    return build_task(settings.task, cut, data).train()


def _middle_ratio(settings: Settings) -> float:
    """FLOPs ratio in the middle of the chain, on a log axis."""
    chain = settings.search.chain
    return math.sqrt(chain.largest * chain.smallest)


def _step_times(task: LightningModule, data: Any) -> Iterator[float]:
    """Milliseconds of training steps on the first batches, at least two.

    The first of them warms up.
    """
    batches = list(islice(data.train_batches(0), COMPARED_STEPS + 1))
    if len(batches) == 1:
        batches = 2 * batches
    for batch in batches:
        begin = time.perf_counter()
        step_loss(task, batch).backward()  # type: ignore[no-untyped-call]
        yield 1e3 * (time.perf_counter() - begin)


def _path(kind: str, settings: Settings, *more: object) -> Path:
    where = [platform.node(), platform.machine(), os.cpu_count(), torch.__version__, *more]
    key = digest([where, settings.model, settings.data, _middle_ratio(settings)])
    return settings.study.baselines / f"{kind}-{key}.json"


def _once(path: Path, names: list[str], measure: Any) -> dict[str, float]:
    """Milliseconds by name, from the file at `path` or else measured and written there."""

    def parsed(data: Any) -> dict[str, float]:
        if set(data) != set(names):
            raise ValueError(f"it must have a time for each of {names}; it has {sorted(data)[:9]}")
        return {name: float(value) for name, value in data.items()}

    milliseconds = read_cache(path, parsed)
    if milliseconds is None:
        milliseconds = measure()
        write_atomic(path, json.dumps(milliseconds))
    return milliseconds


def _words(milliseconds: dict[str, float]) -> str:
    return ", ".join(f"{name}: {value:.1f} ms" for name, value in milliseconds.items())
