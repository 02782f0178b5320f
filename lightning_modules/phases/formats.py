"""Memory formats of weights during training, and where one of them must not be used."""

from __future__ import annotations

import os
import platform

import torch
from torch import nn

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""torch's memory formats by name.

Channels last makes some convolutions faster, and all depthwise ones.
"""
WIDE = ("AVX512", "AVX10")
"""How the names of instruction sets with 512-bit vectors begin."""


def channels_last_fault(model: nn.Module, device: torch.device) -> str:
    """Why training `model` in channels last would corrupt memory on this device.

    Empty where it would not. On x86 CPUs without AVX-512, oneDNN writes the weight gradients of
    strided 1 x 1 convolutions with fewer than 8 input channels past their workspace (oneDNN issue
    6035). The results are wrong gradients, hangs and crashes. Pruning makes convolutions that
    narrow.
    """
    if device.type != "cpu" or not _is_x86() or _uses_avx512():
        return ""
    unstrided = _unstrided_weights(model)
    for name, parameter in model.named_parameters():
        is_1x1 = parameter.dim() == 4 and parameter.shape[2:] == (1, 1)
        if is_1x1 and id(parameter) not in unstrided:
            layer = name.removesuffix(".weight")
            return (
                f"'{layer}' may be a strided 1 x 1 convolution, and the gradients of these in "
                "channels last corrupt memory on a CPU without AVX-512 (oneDNN issue 6035)"
            )
    return ""


def _unstrided_weights(model: nn.Module) -> set[int]:
    """The ids of the weights of all convolutions with stride 1."""
    weights = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
            weights.add(id(module.weight))
    return weights


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _uses_avx512() -> bool:
    """Whether oneDNN takes its AVX-512 kernels: the CPU has them and no variable forbids them."""
    highest_allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    capability = torch.backends.cpu.get_cpu_capability()
    allowed = highest_allowed.startswith((*WIDE, "ALL", "DEFAULT"))
    return capability.startswith(WIDE) and allowed
