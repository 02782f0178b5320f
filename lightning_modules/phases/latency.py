"""The measured latency of a model on the device that it runs on."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from lightning_modules.pruning.inputs import Inputs


@torch.no_grad()
def latency_ms(model: nn.Module, example: Inputs, repeats: int = 20, warmup: int = 5) -> float:
    """Median milliseconds of a forward pass, over `repeats` passes after `warmup` untimed ones.

    The batch, dtype and device are those of the example; the threads are torch's. The model goes to
    that device: Lightning leaves what it has trained on the CPU.
    """
    model.to(example.device).eval()
    devices = _cuda_devices(example)
    seconds = []
    for turn in range(warmup + repeats):
        _wait(devices)
        begin = time.perf_counter()
        example.call(model)
        _wait(devices)
        if turn >= warmup:
            seconds.append(time.perf_counter() - begin)
    return 1000.0 * statistics.median(seconds)


def _cuda_devices(example: Inputs) -> set[torch.device]:
    devices = set()
    for tensor in example.tensors():
        if tensor.device.type == "cuda":
            devices.add(tensor.device)
    return devices


def _wait(devices: set[torch.device]) -> None:
    """Kernels run asynchronously: a clock says nothing before they have ended."""
    for device in devices:
        torch.cuda.synchronize(device)
