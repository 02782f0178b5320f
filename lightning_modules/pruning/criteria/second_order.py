"""Scores units by what is lost when the others make up for them as well as they can.

Source: Hassibi and Stork 1993, "Optimal Brain Surgeon", for whole columns of the consumers (Frantar
and Alistarh 2022, "Optimal Brain Compression").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import require_batches
from lightning_modules.pruning.criteria.members import living, occurrences, unit_sums
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.criteria.taps import UnitRow
from lightning_modules.pruning.multiplications import (
    Multiplication,
    Multiplications,
    output_sizes,
    outputs_at,
)
from lightning_modules.pruning.structure import Group, Structure
from lightning_modules.pruning.thresholds import Scores

MOST_POSITIONS = 4096
"""Positions of a consumer's output that count in each batch at most."""
AT_ONCE = 16
"""A step of the elimination removes a sixteenth of the units that are left."""


@dataclass(frozen=True)
class SecondOrder:
    """The error of the consumers' outputs at which a unit goes, as units go one after another.

    Each time those units go whose loss, once the rest makes up for it, changes the outputs of their
    consumers least. The error is squared, over the variance of the outputs, and summed over the
    consumers. So one order serves every size, and scores of different groups can be compared. The
    unit that stays last has the highest score.

    `damping` is added to the second moments of the inputs, as a share of their mean. Units that no
    product with a parameter consumes (queries and keys only meet each other) score by the squares
    of their own weights.
    """

    damping: float = 1e-2
    scores_are_errors: ClassVar[bool] = True

    def __call__(self, model: nn.Module, structure: Structure, calibration: Calibration) -> Scores:
        watch = _Watch(model, structure, calibration.seed)
        with scoring(model, calibration.seed), torch.no_grad(), watch:
            for batch in require_batches(calibration):
                calibration.loss(model, batch)
        alive = living(structure)
        scores = unit_sums(structure, _squares(model))
        for group in structure.groups:
            consumers = watch.consumers_of(group, self.damping)
            if consumers and alive[group.units].any():
                scores[group.units] = 0.0
                _eliminate(group, consumers, scores)
        scores[~alive] = 0.0
        return scores


def _squares(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: p.detach().square() for name, p in model.named_parameters() if p.dim() > 1}


class _Moments:
    """Sums over positions of one weight's inputs and outputs; `matrix` is the weight."""

    def __init__(self, row: UnitRow, matrix: Tensor) -> None:
        self.row = row
        self.kernel = math.prod(matrix.shape[:-2])
        self.matrix = matrix.flatten(0, -2).double().clone()
        self.count = 0
        self.gram = self.matrix.new_zeros(len(self.matrix), len(self.matrix))
        self.outputs = self.matrix.new_zeros(2, self.matrix.shape[1])

    def add(self, x: Tensor, outputs: Tensor) -> None:
        self.count += len(x)
        self.gram += (x.T @ x).double()
        self.outputs[0] += outputs.double().sum(0)
        self.outputs[1] += outputs.double().square().sum(0)

    @property
    def variance(self) -> float:
        """The variance of the outputs, summed over them."""
        mean, square = self.outputs / self.count
        return float((square - mean.square()).sum())


class _Watch(Multiplications):  # type: ignore[no-untyped-call]
    """Sums up what flows into and out of all consumers of prunable units."""

    def __init__(self, model: nn.Module, structure: Structure, seed: int) -> None:
        super().__init__(model)
        self._moments: dict[tuple[str, int], _Moments] = {}
        self._structure = structure
        self._seed = seed

    def after(self, product: Multiplication, out: Tensor) -> None:
        weight = product.weight
        row = self._structure.table.get((weight.name, weight.own_into))
        if row is None:
            return
        key = (weight.name, weight.start)
        if key not in self._moments:
            self._moments[key] = _Moments(row, weight.matrix())
        sizes = output_sizes(out, product.channel)
        total = math.prod(sizes)
        # the same positions in every batch: its place among the others makes no difference
        generator = torch.Generator().manual_seed(self._seed)
        positions = torch.randperm(total, generator=generator)[:MOST_POSITIONS].to(out.device)
        columns = product.columns(positions, sizes)
        self._moments[key].add(columns, outputs_at(out, product.channel, positions))

    def consumers_of(self, group: Group, damping: float) -> list[_Consumer]:
        consumers = []
        for moments in self._moments.values():
            if group.among(moments.row).any():
                consumers.append(_Consumer(group, moments, damping))
        return consumers


class _Consumer:
    """A weight that consumes units of a group, as units go and the rest makes up for them.

    `units` are offsets into the group, `columns` of shape (units, columns of each).
    """

    def __init__(self, group: Group, moments: _Moments, damping: float) -> None:
        self.units, places = occurrences(moments.row, group)
        offsets = len(moments.row) * np.arange(moments.kernel)
        columns = (places[:, None, :] + offsets[None, :, None]).reshape(len(self.units), -1)
        self.columns = torch.from_numpy(columns).to(moments.matrix.device)
        hessian = moments.gram / moments.count
        hessian.diagonal().add_(damping * float(hessian.diagonal().mean()) or 1.0)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        # what is not a number stays one: the check of the scores names it
        self.inverse = hessian * torch.nan if int(failed) else torch.cholesky_inverse(factor)
        self.matrix = moments.matrix
        self.variance = moments.variance or 1.0

    def costs(self, alive: Tensor) -> Tensor:
        """The error that the loss of each of some units adds; shape (some,)."""
        columns = self.columns[alive]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.matrix[columns]
        inverse, _ = torch.linalg.inv_ex(blocks)
        costs: Tensor = (weights * (inverse @ weights)).sum((1, 2)) / self.variance
        return costs

    def remove(self, units: Tensor) -> None:
        """Let some units go; the weights of the others make up for them."""
        columns = self.columns[units].flatten()
        block, _ = torch.linalg.inv_ex(self.inverse[columns][:, columns])
        gone = self.inverse[:, columns] @ block
        self.matrix = self.matrix - gone @ self.matrix[columns]
        self.inverse = self.inverse - gone @ self.inverse[columns]
        self._forget(columns)

    def _forget(self, columns: Tensor) -> None:
        """Drop columns that are gone, so that the next step has less to do."""
        stays = torch.ones(len(self.matrix), dtype=torch.bool, device=columns.device)
        stays[columns] = False
        self.matrix = self.matrix[stays]
        self.inverse = self.inverse[stays][:, stays]
        self.columns = (stays.cumsum(0) - 1)[self.columns]


def _eliminate(group: Group, consumers: list[_Consumer], scores: Scores) -> None:
    """Let all units of a group go, a few at a time; writes the error at which each goes."""
    units: npt.NDArray[np.intp] = consumers[0].units
    alive = torch.arange(len(units), device=consumers[0].columns.device)
    error = 0.0
    while len(alive):
        costs = torch.stack([consumer.costs(alive) for consumer in consumers]).sum(0)
        order = torch.argsort(costs)[: max(1, len(alive) // AT_ONCE)]
        for place in order.tolist():
            error += float(costs[place])
            scores[group.start + units[int(alive[place])]] = error
        for consumer in consumers:
            consumer.remove(alive[order])
        stays = torch.ones_like(alive, dtype=torch.bool)
        stays[order] = False
        alive = alive[stays]
