"""How many CPU threads train this model fastest: small layers lose more by sharing than they gain."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import statistics
import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.pruning.structure import Structure
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.search.allocation import cut_evenly
from orchestrator.settings import Settings
from orchestrator.stored import kept

STEPS = 4
"""Training steps timed with each number of threads, after one to warm up."""


def choose_threads(settings: Settings, structure: Structure, model: nn.Module, data: Any, device: torch.device) -> str:
    """For `threads=auto` on the CPU: measure, set torch's threads, and return what was found; else an empty string.

    Tries 1, 2, 4... up to the cores on a model cut evenly to the middle of the chain. What it finds is kept with the
    dense baselines, since the bits of a result hang on it: delete the file to measure anew.
    """
    if settings.threads != "auto" or device.type != "cpu":
        return ""
    where = [platform.node(), platform.machine(), os.cpu_count(), torch.__version__]
    middle = math.sqrt(settings.search.chain.largest * settings.search.chain.smallest)
    key = digest([where, settings.model, settings.data, middle])
    path = settings.study.baselines / f"threads-{key}.json"
    milliseconds = kept(path, _parsed)
    if milliseconds is None:
        milliseconds = _measured(settings, structure, model, data, middle)
        write_atomic(path, json.dumps(milliseconds))
    best = min(milliseconds, key=lambda count: milliseconds[count])
    torch.set_num_threads(int(best))
    steps = ", ".join(f"{count}: {value:.1f} ms" for count, value in milliseconds.items())
    return f"{best} of {os.cpu_count()}; a step with {steps}"


def _measured(
    settings: Settings, structure: Structure, model: nn.Module, data: Any, flops_ratio: float
) -> dict[str, float]:
    """Median milliseconds of a training step by the number of threads."""
    cut = cut_evenly(model, structure, flops_ratio)[0] if structure.groups else copy.deepcopy(model)
    task = settings.task.build(model=cut, num_classes=data.num_classes).train()
    batches = list(islice(data.train_batches(0), STEPS + 1))
    found = {}
    for count in _counts():
        torch.set_num_threads(count)
        times = []
        for batch in batches:
            begin = time.perf_counter()
            task.loss(cut, [part for part in batch if isinstance(part, Tensor)]).backward()
            times.append(time.perf_counter() - begin)
        found[str(count)] = 1e3 * statistics.median(times[1:] or times)
    return found


def _counts() -> list[int]:
    return [2**power for power in range((os.cpu_count() or 1).bit_length())]


def _parsed(data: Any) -> dict[str, float]:
    if set(data) != {str(count) for count in _counts()}:
        raise ValueError(f"it must have a time for each of {_counts()} threads; it has {sorted(data)[:9]}")
    return {count: float(value) for count, value in data.items()}
