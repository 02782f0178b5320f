"""Running out of memory: how to recognise it, how to free memory, and how to need less of it."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
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
"""What torch's allocators and NVIDIA's libraries say in a plain RuntimeError, in lower case."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the error, or an error that caused it, says that memory could not be allocated."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        if any(message in text for message in _MESSAGES):
            return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def release_memory() -> None:
    """Free what a failed attempt has left behind. Call it outside of the `except` block.

    Inside that block the frames of the error still hold the tensors. A trainer, its task and its
    callbacks refer to one another, so that only the garbage collector frees them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Parts:
    """Every batch in `parts` pieces of consecutive samples, in the same order.

    A batch is any tree of tensors. Tensors whose first dimension is that of the first tensor have
    the batch in front: they are cut, indices included. If the batch has a list with a dict for each
    sample, as detection has, then this list is cut, and with it every list of its length.
    Everything else goes with each part.
    Errors: ConfigError for a batch with fewer samples than parts.
    """

    batches: Any
    parts: int

    def __len__(self) -> int:
        return self.parts * len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            listed = _listed_samples(batch)

            def is_list_of_samples(node: Any, batch: Any = batch, listed: int = listed) -> bool:
                inside = node is not batch and isinstance(node, list | tuple)
                return inside and listed > 0 and len(node) == listed

            leaves, tree = pytree.tree_flatten(batch, is_leaf=is_list_of_samples)
            size = listed or _batch_size(leaves)
            if size < self.parts:
                raise ConfigError(
                    f"a batch of {size} cannot be cut into {self.parts} parts to save memory; "
                    "take a larger data.batch_size, or study.on_out_of_memory=fail"
                )
            pieces = [self._cut(leaf, size) for leaf in leaves]
            for part in zip(*pieces, strict=True):
                yield pytree.tree_unflatten(part, tree)

    def _cut(self, leaf: Any, size: int) -> tuple[Any, ...]:
        """The pieces of a leaf, or the leaf itself for each part."""
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size:
            return leaf.tensor_split(self.parts)
        if isinstance(leaf, list | tuple):
            places = torch.arange(size).tensor_split(self.parts)
            return tuple(leaf[int(place[0]) : int(place[-1]) + 1] for place in places)
        return (leaf,) * self.parts


def _listed_samples(batch: Any) -> int:
    """The length of a list with a dict for each sample; 0 for a batch without one."""
    entries = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(entries, Tensor) or not isinstance(entries, Iterable):
        return 0
    for entry in entries:
        several = isinstance(entry, list | tuple) and len(entry) > 0
        if several and all(isinstance(sample, Mapping) for sample in entry):
            return len(entry)
    return 0


def _batch_size(leaves: Iterable[Any]) -> int:
    """The first dimension of the first tensor that has one; 0 without such a tensor."""
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    return 0


def in_parts(batches: Iterable[Any], parts: int) -> Iterable[Any]:
    """The batches in `Parts`; with one part, the batches themselves."""
    if parts == 1:
        return batches
    return Parts(batches, parts)
