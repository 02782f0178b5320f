"""A model while it is scored: in eval mode, differentiable, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def scoring(model: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode, every floating-point parameter differentiable, torch seeded; all of it undone at the end.

    Fused kernels that hide their operands or have no second derivative are off: the fast path and the fused
    kernels of attention, and the recurrent kernels of cuDNN (which refuse gradients in eval mode) and oneDNN.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = _buffers(model)
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(cuda))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_off(torch.backends.cudnn))
            stack.enter_context(_off(torch.backends.mkldnn))
        try:
            torch.manual_seed(seed)
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            for parameter in flags:
                parameter.requires_grad_(parameter.is_floating_point())
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, mode in modes.items():
                module.training = mode
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
            _restore(buffers)


@contextmanager
def _off(backend: Any) -> Iterator[None]:
    # its own `flags()` also sets precisions, which warns on processors that have no such choice
    enabled, backend.enabled = backend.enabled, False
    try:
        yield
    finally:
        backend.enabled = enabled


def _buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """Where each buffer hangs, the tensor itself, and a copy of its values."""
    return [
        (module, key, tensor, tensor.detach().clone())
        for module in model.modules()
        for key, tensor in module._buffers.items()
        if tensor is not None
    ]


def _restore(buffers: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for module, key, tensor, values in buffers:
            module._buffers[key] = tensor
            if tensor.shape != values.shape or not torch.equal(tensor, values):
                tensor.resize_(values.shape).copy_(values)
