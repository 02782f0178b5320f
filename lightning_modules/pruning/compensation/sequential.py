"""Compensation: what removed units carried is folded into the weights that consumed them.

The consumers are fitted in the order of execution. Each is fitted on what the model that is already
pruned and compensated feeds it, towards what the model before the cut makes of the same samples. No
labels are needed, and one pass of the pruned model is enough.
Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (asymmetric
reconstruction), with im2col columns and a ridge towards the present weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from lightning_modules.pruning.attention import loosened
from lightning_modules.pruning.compensation.ridge import Evidence, Layer, fitted
from lightning_modules.pruning.compensation.targets import (
    Recorder,
    Target,
    enough,
    kept_positions,
)
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.multiplications import Multiplication, Multiplications
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure


@dataclass(frozen=True)
class Compensated:
    """One consumer that lost inputs.

    `changed` are the parameters that were fitted: its weight, and its bias where it has one. There
    are none where no change was better on samples that the fit has not seen, or where the outputs
    were computed in other pieces before the cut. `before` and `after` are the
    squared errors of its outputs, over the variance of those that are aimed at.
    """

    name: str
    changed: tuple[str, ...]
    before: float = 1.0
    after: float = 1.0
    ridge: float | None = None


@dataclass(frozen=True)
class Compensator:
    """Cuts a model and compensates; made once for all plans that are cut from it.

    `structure` is that of `model`, which is not changed. `inputs` are its samples, on its device.
    """

    model: nn.Module
    structure: Structure
    inputs: Inputs
    seed: int = 0

    @cached_property
    def targets(self) -> Mapping[str, list[Target]]:
        """What every consumer of prunable units puts out, by weight, call by call."""
        recorder = Recorder(self.model, self.structure, self.seed)
        self._run(self.model, recorder)
        return recorder.targets

    def __call__(self, keep: Keep) -> tuple[nn.Module, tuple[Compensated, ...]]:
        """The smaller model, and what came of each consumer that lost inputs.

        The statistics of its norms are still those of the larger model: recalibrate them.
        Errors: PlanError, as in `remove`.
        """
        smaller = remove(self.model, self.structure, keep)
        fitter = _Fitter(smaller, self.targets, keep)
        if not fitter.idle:
            self._run(smaller, fitter)
        return smaller, tuple(fitter.compensated)

    def _run(self, model: nn.Module, watch: Multiplications) -> None:
        """One pass over the samples."""
        with scoring(model, self.seed), loosened(model), torch.no_grad(), watch:
            self.inputs.call(model)


class _Fitter(Multiplications):  # type: ignore[no-untyped-call]
    """Fits every consumer that lost inputs, just before it is computed for the first time."""

    def __init__(self, smaller: nn.Module, targets: Mapping[str, list[Target]], keep: Keep) -> None:
        super().__init__(smaller)
        self.compensated: list[Compensated] = []
        self._keep = keep
        self._fitted: set[tuple[str, int]] = set()
        self._targets = {}
        for name, of_weight in targets.items():
            if kept_positions(of_weight[0].row, keep) is not None:
                self._targets[name] = of_weight

    @property
    def idle(self) -> bool:
        return not self._targets

    def before(self, product: Multiplication) -> None:
        weight = product.weight
        if weight.name not in self._targets or (weight.name, weight.start) in self._fitted:
            return
        self._fitted.add((weight.name, weight.start))
        evidence = self._evidence(product)
        largest = self._targets[weight.name][0].largest
        if evidence is None:
            self.compensated.append(Compensated(weight.name, ()))
        else:
            self.compensated.append(_compensated(product, evidence, largest))

    def _evidence(self, product: Multiplication) -> Evidence | None:
        """What the consumer is fed, and the outputs that it should make.

        A weight that is used again is fitted at its first use: of later ones the inputs before the
        cut are known. None where its outputs were computed in other pieces before the cut.
        """
        count = enough(product)
        parts = []
        for target in self._targets[product.weight.name]:
            wanted = target.outputs_of(product.weight, self._keep)
            if wanted is None:
                continue
            x = target.columns(self._keep, count)
            if x is None:
                x = product.columns(target.positions[:count], target.sizes)
            parts.append(Evidence(x, wanted[:count], target.held_out[:count]))
        return Evidence.together(parts) if parts else None


def _compensated(product: Multiplication, evidence: Evidence, largest: float) -> Compensated:
    """Fit the consumer, in place."""
    weight = product.weight
    matrix = weight.matrix()
    bias = product.bias
    layer = Layer(
        matrix.flatten(0, -2),
        None if bias is None else bias.values,
        float(evidence.x.square().mean().sqrt()) or 1.0,
        largest,
    )
    fit = fitted(evidence, layer)
    if fit is None:
        return Compensated(weight.name, ())
    matrix.add_(fit.change.reshape(matrix.shape).to(matrix.dtype))
    changed = [weight.name]
    if bias is not None and fit.shift is not None:
        bias.values.add_(fit.shift.to(matrix.dtype))
        changed.append(bias.name)
    spread = evidence.spread or 1.0
    return Compensated(
        weight.name, tuple(changed), fit.before / spread, fit.after / spread, fit.ridge
    )
