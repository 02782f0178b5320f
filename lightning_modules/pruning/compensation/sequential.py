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

from lightning_modules.pruning.compensation.products import Product, Products
from lightning_modules.pruning.compensation.ridge import Evidence, fitted
from lightning_modules.pruning.compensation.targets import Recorder, Target, enough
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure


@dataclass(frozen=True)
class Compensated:
    """One consumer that lost inputs, and its error before and after.

    `changed` are the parameters that were fitted: its weight, and its bias where it has one. An
    error is squared and over the variance of the outputs that are aimed at. Without a fit, `reason`
    says why.
    """

    name: str
    changed: tuple[str, ...]
    before: float
    after: float
    ridge: float | None = None
    reason: str = ""


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
        """What every consumer of prunable units puts out, by parameter, call by call."""
        recorder = Recorder(self.model, self.structure, self.seed)
        with scoring(self.model, self.seed), torch.no_grad(), recorder:
            self.inputs.call(self.model)
        return recorder.targets

    def __call__(self, keep: Keep) -> tuple[nn.Module, tuple[Compensated, ...]]:
        """The smaller model, and what came of each consumer that lost inputs.

        The statistics of its norms are still those of the larger model: recalibrate them.
        Errors: PlanError, as in `remove`.
        """
        smaller = remove(self.model, self.structure, keep)
        fitter = _Fitter(smaller, self.targets, keep)
        if fitter.waiting:
            with scoring(smaller, self.seed), torch.no_grad(), fitter:
                self.inputs.call(smaller)
        return smaller, tuple(fitter.compensated)


class _Fitter(Products):
    """Fits every consumer that lost inputs, just before it is computed for the first time."""

    def __init__(self, smaller: nn.Module, targets: Mapping[str, list[Target]], keep: Keep) -> None:
        super().__init__(smaller)
        self.compensated: list[Compensated] = []
        self.waiting: dict[str, list[Target]] = {}
        self._keep = keep
        for name, calls in targets.items():
            if any(target.loses_inputs(keep) for target in calls):
                self.waiting[name] = calls

    def before(self, product: Product) -> None:
        calls = self.waiting.pop(product.weight.name, None)
        if calls is not None:
            self.compensated.append(self._compensated(product, calls))

    def _compensated(self, product: Product, calls: list[Target]) -> Compensated:
        evidence = self._evidence(product, calls)
        spread = sum(target.spread(self._keep) for target in calls) or 1.0
        before = evidence.squares / spread
        matrix = product.weight.matrix()
        fit = fitted(evidence, matrix.flatten(0, -2), calls[0].largest)
        if isinstance(fit, str):
            return Compensated(product.weight.name, (), before, before, reason=fit)
        matrix.add_(fit.change.reshape(matrix.shape).to(matrix.dtype))
        changed = [product.weight.name]
        if product.bias is not None and fit.shift is not None:
            product.bias.values.add_(fit.shift.to(matrix.dtype))
            changed.append(product.bias.name)
        return Compensated(
            product.weight.name, tuple(changed), before, fit.error / spread, fit.ridge
        )

    def _evidence(self, product: Product, calls: list[Target]) -> Evidence:
        """What the consumer is fed, and what its outputs lack.

        A weight that is used again is fitted at its first use: of later ones the inputs before the
        cut are known.
        """
        count = enough(product)
        matrix = product.weight.matrix().flatten(0, -2)
        parts = []
        for target in calls:
            x = target.columns(self._keep, count)
            if x is None:
                x = product.columns(target.positions[:count], target.sizes)
            residual = target.outputs(self._keep)[:count] - x @ matrix
            if product.bias is not None:
                residual -= product.bias.values
            parts.append(Evidence(x, residual, target.held_out[:count]))
        return Evidence.together(parts, intercept=product.bias is not None)
