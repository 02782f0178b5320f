"""What the consumers of prunable units put out before a cut."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.pruning.criteria.taps import UnitRow
from lightning_modules.pruning.multiplications import (
    Multiplication,
    Multiplications,
    WeightView,
    output_sizes,
    outputs_at,
)
from lightning_modules.pruning.structure import Keep, Structure

LEAST_POSITIONS = 3000
"""Positions that a consumer is fitted on at least, where there are so many."""
POSITIONS_PER_UNKNOWN = 12
"""Positions for each input of a consumer."""
HELD_OUT_EVERY = 3
"""Every third sample chooses the ridge and judges the fit."""


@dataclass(frozen=True)
class Target:
    """One product of the model before the cut, at some positions of its output.

    The weight has the unit ids `row` of its inputs and `out_row` of its outputs (None where all
    stay); the product is of its outputs from `start` on. `positions` count through `sizes`, those
    of the output without channels. `values` are the outputs, shape (positions, outputs). `inputs`,
    shape (positions, kernel, inputs), are kept where the same outputs of the weight were computed
    before. `largest` is the norm of the weight.
    """

    row: UnitRow
    out_row: UnitRow | None
    start: int
    sizes: tuple[int, ...]
    positions: Tensor
    values: Tensor
    inputs: Tensor | None
    largest: float

    @property
    def held_out(self) -> Tensor:
        """Which positions choose the ridge and judge the fit; boolean."""
        per_sample = max(1, math.prod(self.sizes[1:]))
        sample = self.positions.div(per_sample, rounding_mode="floor")
        return sample % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

    def outputs_of(self, weight: WeightView, keep: Keep) -> Tensor | None:
        """The values of the outputs that a weight of the smaller model makes.

        Shape (positions, outputs). None if this product makes some others.
        """
        wanted = torch.arange(weight.outputs.start, weight.outputs.stop)
        kept = kept_positions(self.out_row, keep)
        if kept is not None:
            wanted = kept[weight.outputs]
        index = wanted - self.start
        if int(index.min()) < 0 or int(index.max()) >= self.values.shape[1]:
            return None
        return self.values.index_select(1, index.to(self.values.device))

    def columns(self, keep: Keep, count: int) -> Tensor | None:
        """The inputs that stay at the first positions, shape (positions, kernel x inputs)."""
        if self.inputs is None:
            return None
        inputs = self.inputs[:count]
        index = kept_positions(self.row, keep)
        if index is not None:
            inputs = inputs.index_select(-1, index.to(inputs.device))
        return inputs.flatten(1)


def kept_positions(row: UnitRow | None, keep: Keep) -> Tensor | None:
    """The positions of an axis that stay; None if all do."""
    if row is None:
        return None
    stays = (row < 0) | keep[row]
    return None if stays.all() else torch.from_numpy(np.flatnonzero(stays))


def enough(product: Multiplication) -> int:
    """The number of positions that a consumer is fitted on."""
    *kernel, inputs, _ = product.weight.matrix().shape
    return max(LEAST_POSITIONS, POSITIONS_PER_UNKNOWN * math.prod(kernel) * inputs)


class Recorder(Multiplications):  # type: ignore[no-untyped-call]
    """Records the outputs of all consumers of prunable units while the model runs."""

    def __init__(self, model: nn.Module, structure: Structure, seed: int) -> None:
        super().__init__(model)
        self.targets: dict[str, list[Target]] = {}
        self._structure = structure
        self._seed = seed

    def after(self, product: Multiplication, out: Tensor) -> None:
        weight = product.weight
        row = self._structure.table.get((weight.name, weight.own_into))
        if row is None:
            return
        calls = self.targets.setdefault(weight.name, [])
        sizes = output_sizes(out, product.channel)
        key = f"{self._seed} {weight.name} {len(calls)}"
        positions = _drawn(math.prod(sizes), enough(product), key).to(out.device)
        inputs = None
        if any(target.start == weight.start for target in calls):
            columns = product.columns(positions, sizes)
            inputs = columns.reshape(len(columns), -1, len(row))
        values = outputs_at(out, product.channel, positions)
        out_row = self._structure.table.get((weight.name, weight.own_produced))
        largest = float(weight.matrix().norm())
        calls.append(Target(row, out_row, weight.start, sizes, positions, values, inputs, largest))


def _drawn(total: int, count: int, key: str) -> Tensor:
    """Some of `total` positions in a random order, the same for the same key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count]
