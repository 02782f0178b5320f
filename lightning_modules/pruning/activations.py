"""Activation pruning: at run time, what the layers are fed is set to zero where it is small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.errors import PlanError


@dataclass(frozen=True)
class ActivationPruning:
    """Keep inputs with |x| >= `level` (threshold), or of each sample the share `level` with the largest |x| (topk).

    `tensors` names the weights whose modules' inputs are pruned; a module that owns none of them is left alone.
    Used as a forward pre-hook: gradients pass where the activation does.
    """

    kind: Literal["threshold", "topk"]
    level: float
    tensors: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in ("threshold", "topk") or self.level < 0.0 or (self.kind == "topk" and self.level > 1.0):
            raise PlanError(f"activation pruning is a threshold >= 0 or a topk share in [0, 1]; got {self}")

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.pruned(inputs[0]), *inputs[1:])

    def pruned(self, x: Tensor) -> Tensor:
        """`x` with the batch in front and zeros in the place of what is small; same shape."""
        size = x.detach().abs()
        if self.kind == "threshold":
            return x * (size >= self.level)
        flat = size.flatten(1)
        dropped = flat.shape[1] - max(1, round(self.level * flat.shape[1]))
        if dropped == 0:
            return x
        least = flat.kthvalue(dropped, dim=1).values.reshape(-1, *[1] * (x.dim() - 1))
        return x * (size > least)

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Prune from now on; the handles undo it."""
        return [module.register_forward_pre_hook(self) for module in _owners(model, self.tensors).values()]


@contextmanager
def attached(model: nn.Module, how: ActivationPruning | None) -> Iterator[None]:
    """Prune the activations of `model` inside the `with` block; None changes nothing."""
    handles = [] if how is None else how.attach(model)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def activation_densities(
    model: nn.Module, tensors: Sequence[str], batches: Iterable[Any], device: torch.device
) -> dict[str, float]:
    """Share of nonzero inputs of each tensor's module over all batches, as the module sees them after its hooks.

    Tensors whose module is not called as one (attention's own projections) are left out. Leaves the model in eval mode.
    """
    counted: dict[str, list[int]] = {}

    def counter(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found = counted.setdefault(name, [0, 0])
            found[0] += int(torch.count_nonzero(inputs[0]))
            found[1] += inputs[0].numel()

        return hook

    model.to(device).eval()
    # a forward hook sees the inputs as the pre-hooks have left them
    handles = [m.register_forward_hook(counter(name)) for name, m in _owners(model, tensors).items()]
    try:
        for batch in batches:
            model(batch[0].to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: nonzero / total for name, (nonzero, total) in counted.items() if total}


def _owners(model: nn.Module, tensors: Sequence[str]) -> dict[str, nn.Module]:
    """The convolutions and linear layers that own the tensors, by tensor."""
    found: dict[str, nn.Module] = {}
    for name in tensors:
        path, _, leaf = name.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:  # gone with its block
            continue
        if leaf == "weight" and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            found[name] = module
    return found
