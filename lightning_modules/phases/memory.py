"""Too little memory: how it is recognised, how it is given back, and batches in parts that need less of it."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_modules.errors import ConfigError

_MESSAGES = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
"""What torch's allocators and NVIDIA's libraries say in a plain RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it was raised from, says that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(
        message in str(error).lower() for message in _MESSAGES
    ):
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def release_memory() -> None:
    """To be called outside of the `except`: until then the frames of the error hold the tensors of what failed.

    A trainer, its task and its callbacks hold one another, so that only the collector frees them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Parts:
    """Every batch in `parts` pieces of consecutive samples, in the same order; each tensor is cut alike, indices too.

    A batch is any tree of tensors; those whose first dimension is that of the first tensor have the batch in front,
    everything else goes with each part. Errors: ConfigError for a batch with fewer samples than parts.
    """

    batches: Any
    parts: int

    def __len__(self) -> int:
        return self.parts * len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            leaves, tree = pytree.tree_flatten(batch)
            size = next(
                (len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 0
            )
            if size < self.parts:
                raise ConfigError(
                    f"a batch of {size} cannot be cut into {self.parts} parts to save memory; take a larger "
                    "data.batch_size, or study.on_out_of_memory=fail"
                )
            cut = [
                leaf.tensor_split(self.parts) if _batched(leaf, size) else None for leaf in leaves
            ]
            for place in range(self.parts):
                parts = [
                    leaf if pieces is None else pieces[place]
                    for leaf, pieces in zip(leaves, cut, strict=True)
                ]
                yield pytree.tree_unflatten(parts, tree)


def _batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size


def in_parts(batches: Iterable[Any], parts: int) -> Iterable[Any]:
    """`Parts`, or the batches themselves where they stay whole."""
    return batches if parts == 1 else Parts(batches, parts)
