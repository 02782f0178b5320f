"""Synaptic flow: what passes through a weight when signs and data are left out.

Source: Tanaka et al. 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_modules.errors import PlanError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import reached, require_batches
from lightning_modules.pruning.criteria.linear_flow import LinearFlow
from lightning_modules.pruning.criteria.members import named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""


@dataclass(frozen=True)
class SynFlow:
    """| |w| * dR/d|w| | over R, with R the sum of outputs for an input of ones and weights |w|.

    Source: Tanaka et al. 2020, eq. 2. It needs no data: the first batch only gives the shape of the
    input. Norms only scale, nonlinearities return their input, and biases are 0 (see `LinearFlow`).
    It is computed in double precision, since flows grow with depth. Each layer of a plain chain
    gets 1 in all; a unit gets as much from its inputs as from its outputs. A unit takes the sum
    over its producing weights.
    Errors: PlanError, when called, if no flow reaches the output.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return of_units(_flows, model, structure, calibration)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        return of_weights(_flows, model, names, calibration)


def _flows(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    wanted = named(model, names)
    flows = {}
    with scoring(model, calibration.seed):
        args, kwargs = tree_map(_ones, example_arguments(model, calibration))
        state = _magnitudes(model, wanted)
        with LinearFlow():
            outputs = torch.func.functional_call(model, state, args, kwargs)
        total = _sum(outputs)
        sources = {name: state[name] for name in names}
        gradients = reached(total, sources) if total.requires_grad else {}
    for name, gradient in gradients.items():
        flows[name] = (sources[name].detach() * gradient).abs()
    if not any(bool((flow != 0.0).any()) for flow in flows.values()):
        raise PlanError(
            "synaptic flow must reach the output; here it does not (a layer of zeros, or outputs "
            "whose sum is fixed such as a softmax); let the model give logits or take another "
            "criterion"
        )
    return {name: flow / total.detach() for name, flow in flows.items()}


def example_arguments(model: nn.Module, calibration: Calibration) -> Arguments:
    """The arguments with which the loss calls `model` on the first batch.

    Errors: PlanError for a loss that does not call the model.
    """
    calls: list[Arguments] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.no_grad():
            calibration.loss(model, require_batches(calibration)[0])
    finally:
        handle.remove()
    if not calls:
        raise PlanError(
            "synaptic flow takes the input's shape from loss(model, batch); this loss never calls "
            "model()"
        )
    return calls[0]


def _magnitudes(model: nn.Module, wanted: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The model's state with |w| for weights, all in double precision, by name."""
    state = {}
    for name, parameter in model.named_parameters():
        state[name] = _size(name, parameter).requires_grad_(name in wanted)
    for name, buffer in model.named_buffers():
        state[name] = buffer.double() if buffer.is_floating_point() else buffer
    return state


def _ones(value: Any) -> Any:
    """One sample of ones in double precision; integers and flags as they are."""
    if not isinstance(value, Tensor):
        return value
    if value.dim():
        value = value[:1]
    if value.is_floating_point():
        return torch.ones_like(value, dtype=torch.float64)
    return value


def _size(name: str, parameter: Tensor) -> Tensor:
    """|w| as a new leaf; 0 for biases, which are known by their names in any module."""
    if not parameter.is_floating_point():
        return parameter.detach()
    size = parameter.detach().double().abs()
    leaf_name = name.rpartition(".")[2]
    return torch.zeros_like(size) if "bias" in leaf_name else size


def _sum(outputs: Any) -> Tensor:
    """The sum of all floating-point outputs."""
    sums = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            sums.append(leaf.sum())
    return torch.stack(sums).sum()
