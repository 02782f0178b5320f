"""Gradients of the calibration loss with respect to named parameters, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.criteria.contract import Calibration


def per_batch(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], calibration: Calibration
) -> Iterator[dict[str, Tensor]]:
    """Gradients of each batch's loss, to be taken inside `scoring`.

    Parameters that the loss does not reach are left out.
    """
    for batch in require_batches(calibration):
        yield gradients(model, parameters, calibration, batch)


def gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    calibration: Calibration,
    batch: Any,
    graph: bool = False,
) -> dict[str, Tensor]:
    """Gradients of one batch's loss; with `graph` they can be differentiated themselves.

    `.grad` of the parameters does not change. Parameters that the loss does not reach are left out.
    Errors: PlanError for a loss that depends on no parameter.
    """
    loss = calibration.loss(model, batch)
    if not loss.requires_grad:
        raise PlanError(
            "a criterion made of gradients needs a loss that depends on the model's parameters; "
            "this one has no gradient (no_grad or detach in forward or loss); mend that or take a "
            "criterion without gradients"
        )
    return reached(loss, parameters, graph)


def reached(
    value: Tensor, parameters: Mapping[str, Tensor], graph: bool = False
) -> dict[str, Tensor]:
    """The gradients of a scalar with respect to those of the parameters that it depends on."""
    wanted = list(parameters.values())
    per_parameter = torch.autograd.grad(value, wanted, create_graph=graph, allow_unused=True)
    by_name = {}
    for name, gradient in zip(parameters, per_parameter, strict=True):
        if gradient is not None:
            by_name[name] = gradient
    return by_name


def mean_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], calibration: Calibration
) -> dict[str, Tensor]:
    """The mean over all batches, to be taken inside `scoring`.

    It is computed in double precision, so that the order of the batches does not show.
    """
    total: dict[str, Tensor] = {}
    for batch_gradients in per_batch(model, parameters, calibration):
        accumulate(total, batch_gradients, 1.0 / len(calibration.batches))
    return total


def accumulate(total: dict[str, Tensor], values: Mapping[str, Tensor], weight: float) -> None:
    """Add `weight` times `values` to `total`, in place, in double precision."""
    for name, value in values.items():
        if name not in total:
            total[name] = torch.zeros_like(value, dtype=torch.float64)
        total[name].add_(value.detach(), alpha=weight)


def require_batches(calibration: Calibration) -> Sequence[Any]:
    """The batches. Errors: PlanError if there are none."""
    if not len(calibration.batches):
        raise PlanError(
            "this criterion looks at data; it got no batch; set method.calibration_batches to 1 or "
            "more"
        )
    return calibration.batches


def require_all(values: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Errors: PlanError if the loss reached some of `names` in no batch.

    A score of 0 for these would be an invented one.
    """
    missing = [name for name in names if name not in values]
    if missing:
        raise PlanError(
            "the loss must reach every weight that is scored; it does not reach "
            f"{missing[:5]} (no_grad or detach in forward, or an output the loss does not use); "
            "leave them out or take a criterion without gradients"
        )
