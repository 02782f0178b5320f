"""What a network is called with: any tree of tensors and plain values, as one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.errors import ConfigError, DataError

LARGEST = 2**24
"""Most elements of a stored input. A larger one means that the file is damaged."""
MOST_BATCHES = 256
"""Most batches that are looked at for one joined batch."""
CHANNELS = (1, 3, 4)
"""Leading sizes of an image on its own: grey, colour, colour with transparency."""
_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Inputs:
    """The arguments of `network(*args, **kwargs)`; tensors with a batch have it in front."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, network: Any) -> Any:
        """The network's outputs."""
        return network(*self.args, **self.kwargs)

    def tensors(self) -> list[Tensor]:
        """All tensors of the tree, in a fixed order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same tree with every tensor changed."""
        tree = (self.args, dict(self.kwargs))
        args, kwargs = pytree.tree_map_only(Tensor, change, tree)
        return Inputs(args, kwargs)

    def to(self, device: torch.device) -> Inputs:
        return self.map(lambda tensor: tensor.to(device))

    @property
    def device(self) -> torch.device:
        """The device of the first tensor; without tensors, the CPU."""
        tensors = self.tensors()
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def batch(self) -> int | None:
        """Samples in the batch. None if the tensors do not agree on a first dimension.

        None also for lists of images, as detectors take them: they begin with their channels.
        """
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)), is_leaf=_are_images)
        if any(_are_images(leaf) for leaf in leaves):
            return None
        sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in self.tensors()}
        if len(sizes) != 1 or 0 in sizes:
            return None
        return sizes.pop()

    def first(self) -> Inputs:
        """The first sample alone, as a batch of one; inputs without a common batch as they are."""
        if self.batch is None:
            return self
        return self.map(lambda tensor: tensor[:1].clone())

    def repeated(self, times: int) -> Inputs:
        """A batch of one so many times; other batches, and inputs without one, as they are."""
        if self.batch != 1:
            return self
        return self.map(lambda tensor: torch.cat([tensor] * times))

    def to_json(self) -> dict[str, Any]:
        """Shapes and types of the tensors, in place of their values.

        Errors: ConfigError for a value that is neither a tensor nor plain data.
        """
        return {"args": _described(list(self.args)), "kwargs": _described(dict(self.kwargs))}

    @classmethod
    def from_json(cls, data: Any) -> Inputs:
        """Inputs of these shapes and types, all zeros.

        Errors: DataError for what `to_json` does not write.
        """
        try:
            return cls(tuple(_made(data["args"])), _made(data["kwargs"]))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"a model's inputs must be described by shapes and types; {error!r}"
            ) from error


def _are_images(value: Any) -> bool:
    """Whether this looks like a list of images, each a tensor (channels, height, width).

    A list of batches that looks like one loses nothing but its batch: it stays as it is.
    """
    if not isinstance(value, list) or not value:
        return False
    for item in value:
        if not isinstance(item, Tensor) or item.dim() != 3 or item.shape[0] not in CHANNELS:
            return False
    return True


def as_inputs(example: Inputs | Tensor | tuple[Any, ...]) -> Inputs:
    """Inputs from positional arguments, or from one tensor."""
    if isinstance(example, Inputs):
        return example
    if isinstance(example, Tensor):
        return Inputs((example,))
    return Inputs(tuple(example))


def joined_batches(batches: Iterable[Inputs], samples: int) -> Inputs:
    """One batch of at least so many samples, from batches that have the shapes of the first one.

    It has fewer where the first `MOST_BATCHES` have fewer. Inputs without a common batch are not
    joined: the first ones are taken.
    """
    chosen: list[Inputs] = []
    count = 0
    for inputs in islice(batches, MOST_BATCHES):
        if chosen and _shape(inputs) != _shape(chosen[0]):
            continue
        chosen.append(inputs)
        if inputs.batch is None:
            break
        count += inputs.batch
        if count >= samples:
            break
    together = [torch.cat(tensors) for tensors in zip(*map(Inputs.tensors, chosen), strict=True)]
    following = iter(together)
    return chosen[0].map(lambda tensor: next(following))


def _shape(inputs: Inputs) -> Any:
    """What two batches must have in common to be joined: all but the number of samples."""
    leaves, tree = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
    described: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            described.append((tuple(leaf.shape[1:]), leaf.dtype))
        else:
            described.append(leaf)
    return described, tree


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"shape": list(value.shape), "dtype": dtype}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _described(item) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        return [_described(item) for item in value]
    if isinstance(value, _SCALARS):
        return value
    raise ConfigError(
        "a network's inputs must be tensors, plain values, or lists, tuples and dicts of them, to "
        f"be stored with a plan; got {type(value).__name__}"
    )


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(item) for item in value]
    if isinstance(value, Mapping):
        if "shape" in value:
            return _zeros(value)
        return {key: _made(item) for key, item in value["mapping"].items()}
    if not isinstance(value, _SCALARS):
        raise TypeError(f"{type(value).__name__} is no plain value")
    return value


def _zeros(described: Mapping[str, Any]) -> Tensor:
    shape = described["shape"]
    dtype = getattr(torch, described["dtype"])
    if not isinstance(dtype, torch.dtype) or not _is_plausible(shape):
        raise ValueError(f"{dict(described)} is no input of a model")
    return torch.zeros(shape, dtype=dtype)


def _is_plausible(shape: Sequence[int]) -> bool:
    """Whether all sizes are at least 0 and the tensor has at most `LARGEST` elements."""
    if any(size < 0 for size in shape):
        return False
    return math.prod(shape) <= LARGEST


def run(network: nn.Module, inputs: Inputs) -> Any:
    """The network's outputs in eval mode, without gradients."""
    with torch.no_grad():
        return inputs.call(network.eval())
