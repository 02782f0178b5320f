"""Orders of weights in memory during training, and where one of them must not be used."""

from __future__ import annotations

import os
import platform

import torch
from torch import nn

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""By name: channels last makes some convolutions, and all depthwise ones, faster."""
WIDE = ("AVX512", "AVX10")


def channels_last_fault(model: nn.Module, device: torch.device) -> str:
    """Why training `model` in channels last would corrupt memory on this device; empty where it would not.

    On x86 CPUs without AVX-512 the weight gradients of strided 1 x 1 convolutions with fewer than 8 input channels,
    which pruning comes to, are written past their workspace: wrong gradients, hangs, crashes (oneDNN issue 6035).
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64") or _wide():
        return ""
    safe = {
        id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (1, 1)
    }
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4 and parameter.shape[2:] == (1, 1) and id(parameter) not in safe:
            return (
                f"'{name.removesuffix('.weight')}' may be a strided 1 x 1 convolution, and the gradients of these in "
                "channels last corrupt memory on a CPU without AVX-512 (oneDNN issue 6035)"
            )
    return ""


def _wide() -> bool:
    """Whether oneDNN takes its AVX-512 kernels."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    found = torch.backends.cpu.get_cpu_capability()
    return found.startswith(WIDE) and most.startswith((*WIDE, "ALL", "DEFAULT"))
