"""The least change of a weight that best makes up for the inputs it has lost.

A ridge regression towards the present weights: without evidence nothing changes. Its strength is
chosen on samples that the fit has not seen.
Source: Hoerl and Kennard 1970, "Ridge Regression".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
"""Strengths tried, strongest first, as multiples of the mean second moment of the inputs."""
MOST_GROWTH = 4.0
"""Largest norm of a fitted weight, as a multiple of the norm before the cut."""
DOUBLE_INPUTS = 512
"""Up to so many inputs, moments are summed in double precision."""


@dataclass(frozen=True)
class Evidence:
    """What a consumer is fed, and what its outputs lack; one row per position.

    `x` has shape (positions, inputs), `residual` (positions, outputs). `held_out` positions choose
    the ridge. With an `intercept`, the last column of `x` is constant.
    """

    x: Tensor
    residual: Tensor
    held_out: Tensor
    intercept: float | None = None

    @classmethod
    def together(cls, parts: Sequence[Evidence], intercept: bool) -> Evidence:
        """All of them, with a constant column as large as the others if wanted."""
        x = torch.cat([part.x for part in parts])
        residual = torch.cat([part.residual for part in parts])
        held_out = torch.cat([part.held_out for part in parts])
        if not intercept:
            return cls(x, residual, held_out)
        size = float(x.square().mean().sqrt()) or 1.0
        return cls(torch.cat([x, x.new_full((len(x), 1), size)], 1), residual, held_out, size)

    @property
    def squares(self) -> float:
        return float(self.residual.double().square().sum())

    def moments(self, held_out: bool) -> Moments:
        """Of the positions that are held out, or of the others."""
        chosen = self.held_out if held_out else ~self.held_out
        dtype = torch.float64 if self.x.shape[1] <= DOUBLE_INPUTS else torch.float32
        x = self.x[chosen].to(dtype)
        residual = self.residual[chosen].to(dtype)
        gram = (x.T @ x).double()
        cross = (x.T @ residual).double()
        return Moments(gram, cross, float(residual.square().sum()))


@dataclass(frozen=True)
class Moments:
    """Sums over positions: `gram` (inputs, inputs), `cross` (inputs, outputs) with the residual,
    and the residual's squares.
    """

    gram: Tensor
    cross: Tensor
    squares: float

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.gram + other.gram, self.cross + other.cross, self.squares + other.squares
        )

    def error(self, change: Tensor) -> float:
        """The squared error that is left after a change, shape (inputs, outputs)."""
        gained = 2.0 * float((change * self.cross).sum())
        paid = float((change * (self.gram @ change)).sum())
        return self.squares - gained + paid

    def solved(self, ridge: float) -> Tensor | None:
        """The ridge regression of the residual on the inputs; None where it cannot be solved."""
        strength = ridge * float(self.gram.diagonal().mean())
        if strength <= 0.0:
            return None
        left = self.gram.clone()
        left.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(left)
        if int(failed):
            return None
        return torch.cholesky_solve(self.cross, factor)


@dataclass(frozen=True)
class Fit:
    """A `change` of the weight, shape (inputs, outputs), and a `shift` of the bias, (outputs,).

    `error` is the squared error that is left.
    """

    change: Tensor
    shift: Tensor | None
    ridge: float
    error: float


def fitted(evidence: Evidence, weight: Tensor, largest: float) -> Fit | str:
    """The best change of `weight`, shape (inputs, outputs), or the reason why there is none.

    It is found on all positions, with the ridge that leaves the smallest error on those held out.
    The norm of the changed weight stays below `MOST_GROWTH` x `largest`.
    """
    train = evidence.moments(held_out=False)
    held_out = evidence.moments(held_out=True)
    ridge, error = _best_ridge(train, held_out)
    if error >= held_out.squares:
        return "no better on samples that the fit has not seen"
    whole = train + held_out
    solution = whole.solved(ridge)
    if solution is None:
        return "ill-conditioned"
    change, shift = solution, None
    if evidence.intercept is not None:
        change = solution[:-1]
        shift = evidence.intercept * solution[-1]
    if float((weight.double() + change).norm()) > MOST_GROWTH * largest:
        return "the weights would grow too far"
    return Fit(change, shift, ridge, whole.error(solution))


def _best_ridge(train: Moments, held_out: Moments) -> tuple[float, float]:
    """The ridge with the smallest error on the positions held out, and this error.

    Weaker ones are tried as long as they are better.
    """
    best, least = 0.0, float("inf")
    for ridge in RIDGES:
        change = train.solved(ridge)
        if change is None:
            continue
        error = held_out.error(change)
        if error >= least:
            break
        best, least = ridge, error
    return best, least
