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
    """Training batches to score on, the task's loss of (model, batch), and the seed of whatever is random.

    `batches` are on the model's device; every pass of a criterion sees the same ones, all of them.
    """

    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    seed: int = 0


class Criterion(Protocol):
    """A score per unit, higher = keep; shape (n_units,), finite for every unit that `model` has, 0 elsewhere.

    `structure` is that of `model`: for a pruned one `structure.restrict(keep)`. The model is left as it was; it is
    scored in eval mode. Whole blocks (groups without members) get 0: `block_scores` measures those.
    """

    def __call__(
        self, model: nn.Module, structure: Structure, calibration: Calibration
    ) -> Scores: ...


class WeightCriterion(Protocol):
    """A score per single weight, higher = keep: for each of `names` a float tensor shaped and placed like it."""

    def weights(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration
    ) -> dict[str, Tensor]: ...
