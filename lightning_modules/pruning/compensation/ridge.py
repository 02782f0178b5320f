"""The least change of a weight that best makes up for the inputs it has lost.

A ridge regression towards the present weights: without evidence nothing changes. Its strength is
chosen on samples that the fit has not seen.
Source: Hoerl and Kennard 1970, "Ridge Regression".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
"""Strengths tried, strongest first, as multiples of the mean second moment of the inputs."""
MANY_INPUTS = 512
"""With more inputs only `USUAL_RIDGE` is tried: solving takes long, the choice changes little."""
USUAL_RIDGE = 1e-2
MOST_GROWTH = 30.0
"""Largest norm of a fitted weight, as a multiple of its norm before the cut.

A twentieth of the inputs that takes over the work of all has weights several times as large.
"""


@dataclass(frozen=True)
class Evidence:
    """What a consumer is fed, and the outputs that it should make; one row per position.

    `x` has shape (positions, inputs), `wanted` (positions, outputs). `held_out` positions choose
    the ridge.
    """

    x: Tensor
    wanted: Tensor
    held_out: Tensor

    @classmethod
    def together(cls, parts: Sequence[Evidence]) -> Evidence:
        return cls(
            torch.cat([part.x for part in parts]),
            torch.cat([part.wanted for part in parts]),
            torch.cat([part.held_out for part in parts]),
        )

    @property
    def spread(self) -> float:
        """The squared distance of the wanted outputs from their means."""
        return float((self.wanted - self.wanted.mean(0)).double().square().sum())

    def of(self, layer: Layer, held_out: bool) -> LeastSquares:
        """The regression on the positions that are held out, or on the others."""
        chosen = self.held_out if held_out else ~self.held_out
        x = self.x[chosen]
        residual = self.wanted[chosen] - layer(x)
        inputs = layer.inputs(x)
        # by the layer's inputs or by positions, whichever are fewer in the larger part
        if len(self.x) < inputs.shape[1]:
            return FewPositions(inputs.double(), residual.double())
        gram = (inputs.T @ inputs).double()
        cross = (inputs.T @ residual).double()
        return Moments(gram, cross, float(residual.square().sum()))


@dataclass(frozen=True)
class Layer:
    """A `weight` of shape (inputs, outputs), and a `bias` where there is one.

    The bias counts as the weight of one more input, which is always `one`. `largest` is the norm of
    the weight before the cut.
    """

    weight: Tensor
    bias: Tensor | None
    one: float
    largest: float

    def __call__(self, x: Tensor) -> Tensor:
        outputs = x @ self.weight
        return outputs if self.bias is None else outputs + self.bias

    def inputs(self, x: Tensor) -> Tensor:
        """All that is multiplied with a weight."""
        if self.bias is None:
            return x
        return torch.cat([x, x.new_full((len(x), 1), self.one)], 1)

    def grows_too_far(self, change: Tensor) -> bool:
        """Whether the weight, changed so, is much larger than before the cut."""
        changed = self.weight.double() + change[: len(self.weight)]
        return float(changed.norm()) > MOST_GROWTH * self.largest


class LeastSquares(Protocol):
    """A residual, shape (positions, outputs), to be explained by inputs, (positions, inputs).

    `squares` is the sum of the residual's squares.
    """

    @property
    def squares(self) -> float: ...

    def error(self, change: Tensor) -> float:
        """The squared error that is left after a change, shape (inputs, outputs)."""
        ...

    def solved(self, ridge: float) -> Tensor | None:
        """The ridge regression, shape (inputs, outputs); None where it cannot be solved."""
        ...

    def __add__(self, other: Any) -> Any:
        """The regression on the positions of both."""
        ...


@dataclass(frozen=True)
class Moments:
    """A regression by its sums over positions, summed as the model computes and held in double.

    `gram` is of inputs x inputs, `cross` of inputs x residual.
    """

    gram: Tensor
    cross: Tensor
    squares: float

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.gram + other.gram, self.cross + other.cross, self.squares + other.squares
        )

    def error(self, change: Tensor) -> float:
        gained = 2.0 * float((change * self.cross).sum())
        paid = float((change * (self.gram @ change)).sum())
        return self.squares - gained + paid

    def solved(self, ridge: float) -> Tensor | None:
        return _solved(self.gram, self.cross, ridge * float(self.gram.diagonal().mean()))


@dataclass(frozen=True)
class FewPositions:
    """A regression by its positions, where these are fewer than the inputs."""

    x: Tensor
    residual: Tensor

    @property
    def squares(self) -> float:
        return float(self.residual.square().sum())

    def __add__(self, other: FewPositions) -> FewPositions:
        return FewPositions(
            torch.cat([self.x, other.x]), torch.cat([self.residual, other.residual])
        )

    def error(self, change: Tensor) -> float:
        return float((self.residual - self.x @ change).square().sum())

    def solved(self, ridge: float) -> Tensor | None:
        strength = ridge * float(self.x.square().sum()) / self.x.shape[1]
        dual = _solved(self.x @ self.x.T, self.residual, strength)
        return None if dual is None else self.x.T @ dual


def _solved(square: Tensor, right: Tensor, strength: float) -> Tensor | None:
    """The solution of (square + strength I) X = right; None where there is none."""
    if strength <= 0.0:
        return None
    left = square.clone()
    left.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(left)
    if int(failed):
        return None
    return torch.cholesky_solve(right, factor)


@dataclass(frozen=True)
class Fit:
    """A `change` of the weight, shape (inputs, outputs), and a `shift` of the bias, (outputs,).

    `before` and `after` are the squared errors.
    """

    change: Tensor
    shift: Tensor | None
    ridge: float
    before: float
    after: float


def fitted(evidence: Evidence, layer: Layer) -> Fit | None:
    """The best change of a layer; None where none is better on the positions held out.

    It is found on all positions, with the ridge that leaves the smallest error on those held out.
    """
    train = evidence.of(layer, held_out=False)
    held_out = evidence.of(layer, held_out=True)
    ridge = _best_ridge(layer, train, held_out)
    if ridge is None:
        return None
    whole = train + held_out
    solution = whole.solved(ridge)
    if solution is None or layer.grows_too_far(solution):
        return None
    change = solution[: len(layer.weight)]
    shift = None if layer.bias is None else layer.one * solution[-1]
    return Fit(change, shift, ridge, whole.squares, whole.error(solution))


def _best_ridge(layer: Layer, train: LeastSquares, held_out: LeastSquares) -> float | None:
    """The ridge with the smallest error on the positions held out.

    None if that is no smaller than without a change. Weaker ones are tried as long as they are
    better.
    """
    best = None
    least = held_out.squares
    ridges = RIDGES if len(layer.weight) <= MANY_INPUTS else (USUAL_RIDGE,)
    for ridge in ridges:
        change = train.solved(ridge)
        if change is None or layer.grows_too_far(change):
            continue
        error = held_out.error(change)
        if error >= least:
            break
        best, least = ridge, error
    return best
