"""What a convolution's kernel meets at some positions of its output (im2col, sampled)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """How the kernel of a convolution moves, each by spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool

    def source(self, dim: int, place: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """The input index that meets an output `place` at a kernel `offset`, and if there is one.

        The index may lie outside of the input.
        """
        shift = offset * self.dilation[dim]
        if not self.transposed:
            index = place * self.stride[dim] - self.padding[dim] + shift
            return index, torch.ones_like(index, dtype=torch.bool)
        reach = place + self.padding[dim] - shift
        return reach.div(self.stride[dim], rounding_mode="floor"), reach % self.stride[dim] == 0


def columns_at(
    x: Tensor, window: Window, kernel: Sequence[int], positions: Tensor, sizes: tuple[int, ...]
) -> Tensor:
    """The inputs under the kernel at some output positions; shape (positions, kernel x channels).

    `x` has shape (samples, ...space, channels), without samples (...space, channels). `positions`
    count through `sizes`, (samples, ...space of the output). Padding is zero.
    """
    space = x.shape[-1 - len(kernel) : -1]
    channels = x.shape[-1]
    rows = torch.cat([x.reshape(-1, channels), x.new_zeros(1, channels)])
    sample, *places = _unravelled(positions, sizes, len(kernel))
    parts = []
    for offsets in product(*map(range, kernel)):
        index = sample
        inside = torch.ones_like(sample, dtype=torch.bool)
        for dim, offset in enumerate(offsets):
            at, exists = window.source(dim, places[dim], offset)
            inside &= exists & (at >= 0) & (at < space[dim])
            index = index * space[dim] + at
        padded = torch.where(inside, index, len(rows) - 1)
        parts.append(rows.index_select(0, padded))
    return torch.cat(parts, 1)


def _unravelled(positions: Tensor, sizes: tuple[int, ...], spatial: int) -> list[Tensor]:
    """(sample, place in each spatial dimension) of each position."""
    if len(sizes) == spatial:
        sizes = (1, *sizes)
    return list(torch.unravel_index(positions, sizes))
