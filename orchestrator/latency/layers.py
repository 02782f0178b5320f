"""The layers of a network as they are timed alone: what their time depends on beside channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Product, Structure

UnitIds = npt.NDArray[np.int32]
"""A unit id per channel, -1 for a fixed one."""
_LINEAR = "Linear"
_KINDS = {kind.__name__: kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)}
"""Modules that are timed alone, by name."""


@dataclass(frozen=True)
class LayerShape:
    """What the time of a layer depends on beside its channels.

    `around` is the shape of its inputs without the channels. A convolution in groups has `grouped`
    channels (inputs, outputs) in each of them, and as many groups as its outputs need.
    """

    kind: str
    around: tuple[int, ...]
    options: Mapping[str, Any]
    grouped: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def key(self) -> str:
        return repr(sorted(self.to_json().items()))

    def layer(self, inputs: int, outputs: int) -> tuple[nn.Module, Inputs]:
        """A layer of so many channels, and inputs for it.

        In groups it has as many whole ones as these outputs are nearest to, and their inputs.
        """
        options = dict(self.options)
        if self.grouped is not None:
            groups = max(1, round(outputs / self.grouped[1]))
            options["groups"] = groups
            inputs = groups * self.grouped[0]
            outputs = groups * self.grouped[1]
        layer = _KINDS[self.kind](inputs, outputs, **options).eval()
        if self.kind == _LINEAR:
            return layer, Inputs((torch.ones(*self.around, inputs),))
        batch, *positions = self.around
        return layer, Inputs((torch.ones(batch, inputs, *positions),))


@dataclass(frozen=True)
class TimedLayer:
    """A layer of a network: its weight's name, its shape, and its channels.

    `inputs` and `outputs` are its channels; a layer in groups has one input, since the others
    follow from its outputs. `blocks` are the whole blocks with which the layer goes.
    """

    weight: str
    shape: LayerShape
    inputs: UnitIds
    outputs: UnitIds
    blocks: tuple[UnitIds, ...]


def layers_of(model: nn.Module, structure: Structure, example: Inputs) -> list[TimedLayer]:
    """The layers that can be timed alone, one for each call of one.

    What calls no such module, as attention and recurrent layers do not, is left out.
    """
    products = {product.tensor: product for product in structure.macs if product.tensor}
    layers = []
    for name, module, around in _calls(model, example):
        weight = f"{name}.weight" if name else "weight"
        if weight in products:
            layers.append(_layer(weight, module, around, structure, products[weight]))
    return layers


def _calls(model: nn.Module, example: Inputs) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, module and input shape without channels of each call, in the order of the pass."""
    twin = copy_of(model).eval()
    device = next(twin.parameters()).device
    calls: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not args:
            # called by keyword: what is not noted has no table
            return
        shape = list(args[0].shape)
        del shape[-1 if isinstance(module, nn.Linear) else 1]
        calls.append((name, module, tuple(shape)))

    for name, module in twin.named_modules():
        if type(module).__name__ in _KINDS and type(module) in _KINDS.values():
            module.register_forward_pre_hook(partial(note, name))
    with torch.no_grad():
        example.to(device).call(twin)
    return calls


def _layer(
    weight: str, module: Any, around: tuple[int, ...], structure: Structure, product: Product
) -> TimedLayer:
    options: dict[str, Any] = {}
    grouped = None
    outputs, inputs = module.weight.shape[:2]
    if not isinstance(module, nn.Linear):
        for name in ("kernel_size", "stride", "padding", "dilation"):
            options[name] = getattr(module, name)
        if module.groups > 1:
            grouped = (inputs, outputs // module.groups)
    shape = LayerShape(type(module).__name__, around, options, grouped)
    blocks = []
    for factor in product.factors:
        if _is_block(structure, factor):
            blocks.append(factor)
    return TimedLayer(
        weight,
        shape,
        _ids(structure, weight, 1, inputs) if grouped is None else np.array([-1], dtype=np.int32),
        _ids(structure, weight, 0, outputs),
        tuple(blocks),
    )


def _ids(structure: Structure, weight: str, dim: int, size: int) -> UnitIds:
    fixed = np.full(size, -1, dtype=np.int32)
    return structure.table.get((weight, dim), fixed)


def _is_block(structure: Structure, factor: UnitIds) -> bool:
    if len(factor) != 1 or factor[0] < 0:
        return False
    for group in structure.groups:
        if group.start == factor[0]:
            return group.kind == "block"
    return False
