"""What a network is called with: any tree of tensors and plain values, as a value of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.errors import ConfigError, DataError

LARGEST = 2**24
"""Elements of a stored input: more is no input of a model, but a damaged file."""
_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Inputs:
    """`network(*args, **kwargs)`; tensors have the batch in front where they have one."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, network: Any) -> Any:
        """The network's outputs."""
        return network(*self.args, **self.kwargs)

    def tensors(self) -> list[Tensor]:
        """All tensors of the tree, in a fixed order."""
        return [
            leaf
            for leaf in pytree.tree_leaves((self.args, dict(self.kwargs)))
            if isinstance(leaf, Tensor)
        ]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same tree with every tensor changed."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def to(self, device: torch.device) -> Inputs:
        return self.map(lambda tensor: tensor.to(device))

    @property
    def device(self) -> torch.device:
        """Where the first tensor is; the CPU without one."""
        return next((tensor.device for tensor in self.tensors()), torch.device("cpu"))

    @property
    def batch(self) -> int | None:
        """Samples in the batch; None where the tensors do not agree on a first dimension."""
        sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in self.tensors()}
        return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None

    def first(self) -> Inputs:
        """The first sample alone, with a batch of one; the inputs as they are where they have no common batch."""
        return self if self.batch is None else self.map(lambda tensor: tensor[:1].clone())

    def twice(self) -> Inputs:
        """A batch of one two times; other batches, and inputs without one, as they are."""
        return self.map(lambda tensor: torch.cat([tensor, tensor])) if self.batch == 1 else self

    def to_json(self) -> dict[str, Any]:
        """Shapes and types of the tensors, in place of their values.

        Errors: ConfigError for a value that is neither a tensor nor plain data.
        """
        return {"args": _described(list(self.args)), "kwargs": _described(dict(self.kwargs))}

    @classmethod
    def from_json(cls, data: Any) -> Inputs:
        """Inputs of these shapes and types, all zeros. Errors: DataError for what is no such description."""
        try:
            return cls(tuple(_made(data["args"])), _made(data["kwargs"]))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"a model's inputs must be described by shapes and types; {error!r}"
            ) from error


def as_inputs(example: Inputs | Tensor | tuple[Any, ...]) -> Inputs:
    """Inputs from positional arguments, or from one tensor."""
    if isinstance(example, Inputs):
        return example
    return Inputs((example,)) if isinstance(example, Tensor) else Inputs(tuple(example))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _described(item) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        return [_described(item) for item in value]
    if isinstance(value, _SCALARS):
        return value
    raise ConfigError(
        "a network's inputs must be tensors, plain values, or lists, tuples and dicts of them, to be stored with a "
        f"plan; got {type(value).__name__}"
    )


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(item) for item in value]
    if isinstance(value, Mapping):
        return (
            _zeros(value)
            if "shape" in value
            else {key: _made(item) for key, item in value["mapping"].items()}
        )
    if not isinstance(value, _SCALARS):
        raise TypeError(f"{type(value).__name__} is no plain value")
    return value


def _zeros(described: Mapping[str, Any]) -> Tensor:
    shape, dtype = described["shape"], getattr(torch, described["dtype"])
    if (
        not isinstance(dtype, torch.dtype)
        or any(size < 0 for size in shape)
        or math.prod(shape) > LARGEST
    ):
        raise ValueError(f"{dict(described)} is no input of a model")
    return torch.zeros(shape, dtype=dtype)


def run(network: nn.Module, inputs: Inputs) -> Any:
    """The network's outputs in eval mode, without gradients."""
    with torch.no_grad():
        return inputs.call(network.eval())
