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
from lightning_modules.pruning.inputs import Inputs


@dataclass(frozen=True)
class ActivationPruning:
    """Keep inputs with |x| >= `level` (threshold), or of each sample the share `level` with the largest |x| (topk).

    `tensors` names the weights whose modules' inputs are pruned; a module that owns none of them is left alone.
    Used as a forward pre-hook: gradients pass where the activation does. topk keeps the share to the element, whatever
    ties there are; where fewer are not zero (after a ReLU) some of those kept are zeros.
    """

    kind: Literal["threshold", "topk"]
    level: float
    tensors: tuple[str, ...]

    def __post_init__(self) -> None:
        most = {"threshold": float("inf"), "topk": 1.0}
        if not 0.0 <= self.level <= most.get(self.kind, -1.0):
            raise PlanError(
                f"activation pruning is a threshold >= 0 or a topk share in [0, 1]; got {self}"
            )

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.pruned(inputs[0]), *inputs[1:])

    def pruned(self, x: Tensor) -> Tensor:
        """`x` with the batch in front and zeros in the place of what is small; same shape."""
        size = x.detach().abs()
        if self.kind == "threshold":
            return x * (size >= self.level)
        flat = size.flatten(1)
        kept = max(1, round(self.level * flat.shape[1]))
        places = flat.topk(kept, dim=1, sorted=False).indices
        return x * torch.zeros_like(flat, dtype=torch.bool).scatter_(1, places, True).reshape(
            x.shape
        )

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Prune from now on; the handles undo it."""
        return [
            module.register_forward_pre_hook(self) for module, _ in _owners(model, self.tensors)
        ]


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
    model: nn.Module, tensors: Sequence[str], batches: Iterable[Inputs], device: torch.device
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
    handles = [
        module.register_forward_hook(counter(name)) for module, name in _owners(model, tensors)
    ]
    try:
        for batch in batches:
            batch.to(device).call(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: nonzero / total for name, (nonzero, total) in counted.items() if total}


def _owners(model: nn.Module, tensors: Sequence[str]) -> list[tuple[nn.Module, str]]:
    """The convolutions and linear layers whose weights the tensors are, each with its tensor; several may share one."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if name in tensors}
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    return [(layer, names[id(layer.weight)]) for layer in layers if id(layer.weight) in names]
