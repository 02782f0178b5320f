"""Synaptic flow: what passes through a weight when signs and data are left out (Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_modules.errors import PlanError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import require_batches
from lightning_modules.pruning.criteria.linear_flow import LinearFlow
from lightning_modules.pruning.criteria.members import named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class SynFlow:
    """| |w| * dR/d|w| | over R, R the sum of outputs for an input of ones and weights |w| (Tanaka et al. 2020, eq. 2).

    Data-free: the first batch gives the shape of the input only. Norms scale and nothing else, nonlinearities pass,
    biases are 0 (see `LinearFlow`); in double precision, since flows grow with depth. Each layer of a plain chain
    gets 1 in all, a unit as much from its inputs as from its outputs. A unit takes the sum over its producing weights.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return of_units(_flows, model, structure, calibration)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        return of_weights(_flows, model, names, calibration)


def _flows(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    wanted = named(model, names)
    with scoring(model, calibration.seed):
        args, kwargs = tree_map(_ones, inputs_of(model, calibration))
        state = {
            name: _size(name, p).requires_grad_(name in wanted)
            for name, p in model.named_parameters()
        }
        state |= {
            name: b.double() if b.is_floating_point() else b for name, b in model.named_buffers()
        }
        with LinearFlow():
            outputs = torch.func.functional_call(model, state, args, kwargs)
        total = _sum(
            [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
        )
        sources = [state[name] for name in names]
        found = (
            torch.autograd.grad(total, sources, allow_unused=True)
            if total.requires_grad
            else [None] * len(names)
        )
    flows = {
        n: (w.detach() * g).abs()
        for n, w, g in zip(names, sources, found, strict=True)
        if g is not None
    }
    if not any(bool((flow != 0.0).any()) for flow in flows.values()):
        raise PlanError(
            "synaptic flow must reach the output; here it does not (a layer of zeros, or outputs whose sum is fixed "
            "such as a softmax); let the model give logits or take another criterion"
        )
    return {name: flow / total.detach() for name, flow in flows.items()}


def inputs_of(model: nn.Module, calibration: Calibration) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that the loss calls `model` with on the first batch."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            calibration.loss(model, require_batches(calibration)[0])
    finally:
        handle.remove()
    if not found:
        raise PlanError(
            "synaptic flow takes the input's shape from loss(model, batch); this loss never calls model()"
        )
    return found[0]


def _ones(value: Any) -> Any:
    """One sample of ones in double precision; integers and flags as they are."""
    if not isinstance(value, Tensor):
        return value
    value = value[:1] if value.dim() else value
    return torch.ones_like(value, dtype=torch.float64) if value.is_floating_point() else value


def _size(name: str, parameter: Tensor) -> Tensor:
    """|w| as a fresh leaf; 0 for biases, by their names, wherever they hang."""
    if not parameter.is_floating_point():
        return parameter.detach()
    size = parameter.detach().double().abs()
    return torch.zeros_like(size) if "bias" in name.rpartition(".")[2] else size


def _sum(outputs: Sequence[Tensor]) -> Tensor:
    return torch.stack([output.sum() for output in outputs]).sum()
