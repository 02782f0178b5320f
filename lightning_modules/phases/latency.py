"""Measured latency of a model on the device it runs on."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from lightning_modules.pruning.inputs import Inputs


@torch.no_grad()
def latency_ms(model: nn.Module, example: Inputs, repeats: int = 20, warmup: int = 5) -> float:
    """Median milliseconds of a forward pass, warmed up, at the example's batch and dtype and torch's threads."""
    model.eval()
    devices = {tensor.device for tensor in example.tensors() if tensor.device.type == "cuda"}
    seconds = []
    for turn in range(warmup + repeats):
        _wait(devices)
        begin = time.perf_counter()
        example.call(model)
        _wait(devices)
        if turn >= warmup:
            seconds.append(time.perf_counter() - begin)
    return 1000.0 * statistics.median(seconds)


def _wait(devices: set[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)
