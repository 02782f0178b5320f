"""Measured latency of a model on the device it runs on."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn


@torch.no_grad()
def latency_ms(model: nn.Module, example: Tensor, repeats: int = 20, warmup: int = 5) -> float:
    """Median milliseconds of a forward pass, warmed up, at the example's batch and dtype and torch's threads."""
    model.eval()
    seconds = []
    for turn in range(warmup + repeats):
        _wait(example)
        begin = time.perf_counter()
        model(example)
        _wait(example)
        if turn >= warmup:
            seconds.append(time.perf_counter() - begin)
    return 1000.0 * statistics.median(seconds)


def _wait(example: Tensor) -> None:
    if example.device.type == "cuda":
        torch.cuda.synchronize(example.device)
