"""Scores weights by the gradient flow that is lost with them (Wang et al. 2020, GraSP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import (
    accumulate,
    gradients,
    mean_gradients,
    reached,
)
from lightning_modules.pruning.criteria.members import floating, named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Grasp:
    """w * Hg: the gradient flow g'g that is lost with a weight.

    A unit takes the sum over its producing weights. The paper removes the weights with the highest
    S(-w) = -w * Hg (Wang et al. 2020, eq. 8, algorithm 1), so the negative of that is the score. g
    and H are means over all batches. The flow is that of all weights of two or more dimensions, and
    of those asked for. The paper's temperature on the logits is left to the loss. Scores have
    either sign: a dead unit scores 0, which is not the lowest score. It needs second derivatives,
    and so twice the memory of a training step.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return of_units(_flows, model, structure, calibration)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        return of_weights(_flows, model, names, calibration)


def _flows(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    wanted = named(model, names)
    flowing = {**_matrices(model), **wanted}
    curvature = {}
    with scoring(model, calibration.seed), _TwiceDifferentiable():
        flow = mean_gradients(model, flowing, calibration)
        for name in names:
            if name in flow:
                curvature[name] = torch.zeros_like(flow[name])
        for batch in calibration.batches:
            of_batch = gradients(model, flowing, calibration, batch, graph=True)
            products = _curvature(of_batch, flow, wanted)
            accumulate(curvature, products, 1.0 / len(calibration.batches))
    return {name: product * wanted[name].detach() for name, product in curvature.items()}


def _matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The floating-point parameters of two or more dimensions."""
    matrices = {}
    for name, parameter in floating(model).items():
        if parameter.dim() >= 2:
            matrices[name] = parameter
    return matrices


class _TwiceDifferentiable(TorchFunctionMode):
    """Replaces hardsigmoid, the one common nonlinearity whose second derivative torch lacks."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("hardsigmoid", "hardsigmoid_"):
            x: Tensor = args[0] if args else kwargs["input"]
            return (x / 6.0 + 0.5).clamp(0.0, 1.0)
        return func(*args, **kwargs)


def _curvature(
    of_batch: Mapping[str, Tensor], flow: Mapping[str, Tensor], wanted: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """One batch's Hessian times the mean gradient, for the wanted weights.

    It is empty for a loss without curvature.
    """
    along_flow = []
    for name, gradient in of_batch.items():
        along_flow.append((gradient * flow[name].to(gradient.dtype)).sum())
    total = torch.stack(along_flow).sum()
    if not total.requires_grad:
        return {}
    return reached(total, wanted)
