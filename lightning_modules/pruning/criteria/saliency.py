"""Criteria that give a value per weight.

A unit scores the sum of its weights' values; a single weight scores its own value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import require_all
from lightning_modules.pruning.criteria.members import as_scores, producing_names, unit_sums
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores

Saliency = Callable[[nn.Module, Sequence[str], Calibration], dict[str, Tensor]]
"""Maps (model, names of parameters, calibration) to a value per element of each parameter.

Parameters that the loss does not reach are left out.
"""


def of_units(
    saliency: Saliency, model: nn.Module, structure: Structure, calibration: Calibration
) -> Scores:
    """Sums over each unit's producing weights, combined over coupled layers; shape (n_units,)."""
    names = producing_names(structure, dict(model.named_parameters()))
    return unit_sums(structure, saliency(model, names, calibration))


def of_weights(
    saliency: Saliency, model: nn.Module, names: Sequence[str], calibration: Calibration
) -> dict[str, Tensor]:
    """The values themselves, in the parameters' shapes.

    Errors: PlanError for a parameter that the loss does not reach.
    """
    values = saliency(model, names, calibration)
    require_all(values, names)
    return as_scores(model, values)
