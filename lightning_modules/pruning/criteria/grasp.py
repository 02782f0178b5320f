"""Gradient flow after pruning (Wang et al. 2020, GraSP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import accumulate, gradients, mean_gradients
from lightning_modules.pruning.criteria.members import named
from lightning_modules.pruning.criteria.saliency import of_units, of_weights
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Grasp:
    """w * Hg: the gradient flow g'g that is lost with a weight; a unit sums over its producing weights.

    The paper removes the weights with the highest S(-w) = -w * Hg (Wang et al. 2020, eq. 8, algorithm 1), so its
    negative is the score. g and H are means over all batches; the flow is that of all weights of two or more
    dimensions, and of those asked for. The paper's temperature on the logits would be the loss's business. Scores
    have either sign: 0, what a dead unit scores, is not the lowest. Needs second derivatives: twice the memory of a
    training step.
    """

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        return of_units(_flows, model, structure, calibration)

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]:
        return of_weights(_flows, model, names, calibration)


def _flows(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    wanted = named(model, names)
    matrices = {
        name: p for name, p in model.named_parameters() if p.is_floating_point() and p.dim() >= 2
    }
    with scoring(model, calibration.seed), _TwiceDifferentiable():
        flow = mean_gradients(model, {**matrices, **wanted}, calibration)
        total = {name: torch.zeros_like(flow[name]) for name in names if name in flow}
        for batch in calibration.batches:
            found = gradients(model, {**matrices, **wanted}, calibration, batch, graph=True)
            accumulate(total, _curvature(found, flow, wanted), 1.0 / len(calibration.batches))
    return {name: product * wanted[name].detach() for name, product in total.items()}


class _TwiceDifferentiable(TorchFunctionMode):
    """Stands in for the one common nonlinearity whose second derivative torch does not have."""

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
    found: Mapping[str, Tensor], flow: Mapping[str, Tensor], wanted: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """One batch's Hessian times the mean gradient, for the wanted weights; nothing for a loss without curvature."""
    along = [(g * flow[name].to(g.dtype)).sum() for name, g in found.items()]
    total = torch.stack(along).sum()
    if not total.requires_grad:
        return {}
    products = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {
        name: product for name, product in zip(wanted, products, strict=True) if product is not None
    }
