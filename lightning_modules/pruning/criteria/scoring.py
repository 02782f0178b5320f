"""Puts a model into the state in which it is scored, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def scoring(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside the `with` block a model is in eval mode and every float parameter differentiable.

    torch is seeded with `seed`. All of it is undone at the end. Fused kernels that hide their
    operands or have no second derivative are off: the fast path and the fused kernels of attention,
    and the recurrent kernels of cuDNN (which refuse gradients in eval mode) and oneDNN.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = _buffers(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(_cuda_indices(model)))
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
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, mode in modes.items():
                module.training = mode
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
            for buffer in buffers:
                buffer.restore()


def _cuda_indices(model: nn.Module) -> list[int]:
    """The CUDA devices of the model's parameters."""
    indices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return sorted(indices)


@contextmanager
def _off(backend: Any) -> Iterator[None]:
    """Switches a backend off.

    Its own `flags()` also sets precisions, which warns on processors that have no such choice.
    """
    enabled_before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = enabled_before


@dataclass(frozen=True)
class _Buffer:
    """A buffer under the name `key` of a module, and a copy of its values."""

    module: nn.Module
    key: str
    tensor: Tensor
    values: Tensor

    @torch.no_grad()
    def restore(self) -> None:
        """Put the tensor back, and its values if they have changed."""
        self.module._buffers[self.key] = self.tensor
        same_shape = self.tensor.shape == self.values.shape
        if not same_shape or not torch.equal(self.tensor, self.values):
            self.tensor.resize_(self.values.shape).copy_(self.values)


def _buffers(model: nn.Module) -> list[_Buffer]:
    buffers = []
    for module in model.modules():
        for key, tensor in module._buffers.items():
            if tensor is not None:
                buffers.append(_Buffer(module, key, tensor, tensor.detach().clone()))
    return buffers
