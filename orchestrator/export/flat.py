"""A network as exporters see it: some tensors in, some tensors out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.pruning.inputs import Inputs


class Flat(nn.Module):
    """The network, called with the tensors of its inputs in order; the outputs' tensors in order.

    All else in the inputs is as in `example`.
    """

    def __init__(self, network: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.network = network
        self._leaves, self._tree = pytree.tree_flatten((example.args, dict(example.kwargs)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = pytree.tree_unflatten(_replaced(self._leaves, tensors), self._tree)
        return tuple(tensors_of(self.network(*args, **kwargs)))


class Restored(nn.Module):
    """A module whose outputs are tensors in order, with outputs in the form of `outputs`."""

    def __init__(self, module: nn.Module, outputs: Any) -> None:
        super().__init__()
        self.module = module
        self._leaves, self._tree = pytree.tree_flatten(outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = tensors_of(self.module(*args, **kwargs))
        return pytree.tree_unflatten(_replaced(self._leaves, tensors), self._tree)


def tensors_of(outputs: Any) -> list[Tensor]:
    """All tensors of a tree, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def input_names(network: nn.Module, example: Inputs) -> list[str]:
    """A name for each tensor of the inputs: `input` where there is one, else as `forward` has it.

    Tensors inside of one argument are numbered.
    """
    if len(example.tensors()) == 1:
        return ["input"]
    names = []
    for argument, value in _bound(network, example).items():
        count = len(tensors_of(value))
        if count == 1:
            names.append(argument)
        else:
            names += [f"{argument}_{number}" for number in range(count)]
    return names


def _bound(network: nn.Module, example: Inputs) -> dict[str, Any]:
    """The values of `forward`'s arguments by name, in the order of `Inputs.tensors`."""
    positional = list(inspect.signature(network.forward).parameters)
    named: dict[str, Any] = {}
    for number, value in enumerate(example.args):
        name = positional[number] if number < len(positional) else f"input_{number}"
        named[name] = value
    return {**named, **example.kwargs}


def _replaced(leaves: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """The leaves with their tensors replaced, in order."""
    following = iter(tensors)
    return [next(following) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
