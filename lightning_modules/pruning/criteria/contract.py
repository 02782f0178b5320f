"""What a criterion is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.thresholds import Scores


@dataclass(frozen=True)
class Calibration:
    """Training batches to score on, the task's loss of (model, batch), and a seed.

    `batches` are on the model's device. Every pass of a criterion sees all of them, always the
    same. `seed` decides whatever is random in a criterion.
    """

    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    seed: int = 0


class Criterion(Protocol):
    """A score per unit, higher = keep; shape (n_units,).

    Scores are finite for every unit that `model` has, and 0 for all others. `structure` is that of
    `model`; for a pruned model it is `structure.restrict(keep)`. The model is scored in eval mode
    and is left as it was. Whole blocks, which are groups without members, score 0: `block_scores`
    measures them.

    Optional: `scores_are_errors` says that a score is the error behind the group when this unit and
    all of the group with lower scores are gone, on one scale for all groups.
    """

    def __call__(
        self, model: nn.Module, structure: Structure, calibration: Calibration
    ) -> Scores: ...


class WeightCriterion(Protocol):
    """A score per single weight, higher = keep.

    For each of `names` it returns a float tensor of the weight's shape, on the weight's device.
    """

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]: ...
