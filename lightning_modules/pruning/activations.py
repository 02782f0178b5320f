"""Activation pruning: at run time, small inputs of layers are set to zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from lightning_modules.errors import PlanError
from lightning_modules.pruning.inputs import Inputs


@dataclass(frozen=True)
class ActivationPruning:
    """Keeps large inputs of layers and sets the others to zero.

    `threshold` keeps inputs with |x| >= `level`. `topk` keeps, of each sample, the share `level`
    with the largest |x|. `tensors` names the weights whose modules' inputs are pruned; a module
    that owns none of them is not touched. It is used as a forward pre-hook, and gradients pass
    where the activation does. topk keeps exactly its share, whatever ties there are; after a ReLU
    some of the kept inputs may be zeros.
    Errors: PlanError for another kind or a level out of range.
    """

    kind: Literal["threshold", "topk"]
    level: float
    tensors: tuple[str, ...]

    def __post_init__(self) -> None:
        highest = {"threshold": float("inf"), "topk": 1.0}
        if not 0.0 <= self.level <= highest.get(self.kind, -1.0):
            raise PlanError(
                f"activation pruning is a threshold >= 0 or a topk share in [0, 1]; got {self}"
            )

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.pruned(inputs[0]), *inputs[1:])

    def pruned(self, x: Tensor) -> Tensor:
        """`x`, with the batch in front, with small values set to zero; same shape."""
        magnitude = x.detach().abs()
        if self.kind == "threshold":
            return x * (magnitude >= self.level)
        flat = magnitude.flatten(1)
        kept = max(1, round(self.level * flat.shape[1]))
        places = flat.topk(kept, dim=1, sorted=False).indices
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, places, True)
        return x * mask.reshape(x.shape)

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Prune from now on. Removing the handles ends it."""
        owners = _owners(model, self.tensors)
        return [module.register_forward_pre_hook(self) for module, _ in owners]


@contextmanager
def attached(model: nn.Module, pruning: ActivationPruning | None) -> Iterator[None]:
    """Prune the activations of `model` inside the `with` block. None changes nothing."""
    handles = [] if pruning is None else pruning.attach(model)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def activation_densities(
    model: nn.Module, tensors: Sequence[str], batches: Iterable[Inputs], device: torch.device
) -> dict[str, float]:
    """The share of nonzero inputs of each tensor's module, over all batches, after its pre-hooks.

    Tensors whose module is never called, such as attention's own projections, are left out. The
    model is left in eval mode.
    """
    nonzero: dict[str, int] = {}
    total: dict[str, int] = {}

    def counter(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            x = inputs[0]
            nonzero[name] = nonzero.get(name, 0) + int(torch.count_nonzero(x))
            total[name] = total.get(name, 0) + x.numel()

        return count

    model.to(device).eval()
    handles = []
    for module, name in _owners(model, tensors):
        # a forward hook sees the inputs as the pre-hooks have left them
        handles.append(module.register_forward_hook(counter(name)))
    try:
        for batch in batches:
            batch.to(device).call(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: nonzero[name] / total[name] for name in total if total[name]}


def _owners(model: nn.Module, tensors: Sequence[str]) -> list[tuple[nn.Module, str]]:
    """The convolutions and linear layers whose weights the tensors are, each with its tensor.

    Several layers may share one tensor.
    """
    names = {}
    for name, parameter in model.named_parameters():
        if name in tensors:
            names[id(parameter)] = name
    owners: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        if isinstance(module, nn.Linear | _ConvNd) and id(module.weight) in names:
            owners.append((module, names[id(module.weight)]))
    return owners
