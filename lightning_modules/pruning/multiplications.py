"""Sees the products of a model's activations with its parameters, in the order of execution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.pruning.columns import Window, columns_at

_aten = torch.ops.aten


@dataclass(frozen=True)
class WeightView:
    """The parameter `name` as a product sees it: all of its inputs, and some or all outputs.

    `into` is the dimension of the `view` that meets the channels of the activations, `produced` the
    one that makes the channels of the output. In the parameter they are `own_into` and
    `own_produced`; the view begins at its output `start`.
    """

    name: str
    view: Tensor
    into: int
    own_into: int
    start: int

    @property
    def produced(self) -> int:
        return 1 - self.into

    @property
    def own_produced(self) -> int:
        return 1 - self.own_into

    @property
    def outputs(self) -> slice:
        """The outputs of the parameter that the view has."""
        return slice(self.start, self.start + self.view.shape[self.produced])

    def matrix(self) -> Tensor:
        """A view of shape (kernel..., inputs, outputs)."""
        return self.view.movedim((self.into, self.produced), (-2, -1))


@dataclass(frozen=True)
class BiasView:
    """The parameter `name`, added to the outputs of a product."""

    name: str
    values: Tensor


@dataclass(frozen=True)
class Multiplication:
    """One convolution or matrix product of activations `x` with a weight.

    `channel` is the dimension of `x`, and of the output, that holds channels. A convolution has a
    `window`.
    """

    weight: WeightView
    bias: BiasView | None
    x: Tensor
    channel: int
    window: Window | None = None

    def columns(self, positions: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """What the weight is multiplied with at some positions of the output.

        Shape (positions, kernel x inputs). `sizes` are those of the output without its channels.
        """
        rows = self.x.movedim(self.channel, -1)
        if self.window is None:
            return rows.reshape(-1, rows.shape[-1])[positions]
        kernel = tuple(self.weight.matrix().shape[:-2])
        return columns_at(rows, self.window, kernel, positions, sizes)


def output_sizes(out: Tensor, channel: int) -> tuple[int, ...]:
    """The sizes of an output without its channels: samples first, where there are any."""
    return tuple(out.movedim(channel, -1).shape[:-1])


def outputs_at(out: Tensor, channel: int, positions: Tensor) -> Tensor:
    """The outputs at some positions, shape (positions, outputs)."""
    rows = out.movedim(channel, -1)
    return rows[torch.unravel_index(positions, rows.shape[:-1])]


class Multiplications(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, calls `before` and `after` around every product with a parameter of the model.

    It works below modules and functions, so that attention's projections and weights that are
    shared, sliced or transposed are seen as well. A convolution in groups is not seen, nor is a
    weight that is computed in forward.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            storage = parameter.untyped_storage().data_ptr()
            self._parameters[storage].append((name, parameter))

    def before(self, product: Multiplication) -> None:
        """Called before the product is computed; may change the weight in place."""

    def after(self, product: Multiplication, out: Tensor) -> None:
        """Called with the product's output."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        product = self._product(func.overloadpacket, args)
        if product is not None:
            self.before(product)
        out = func(*args, **(kwargs or {}))
        if product is not None:
            self.after(product, out)
        return out

    def _product(self, packet: Any, args: tuple[Any, ...]) -> Multiplication | None:
        if packet is _aten.convolution:
            return self._convolution(args)
        if packet is _aten.linear:
            bias = args[2] if len(args) > 2 else None
            return self._known(args[1], 1, bias, args[0], -1)
        if packet is _aten.mm:
            left, right = args
            on_the_left = self._known(left, 1, None, right, 0)
            return self._known(right, 0, None, left, -1) or on_the_left
        if packet is _aten.addmm:
            bias, left, right = args[:3]
            return self._known(right, 0, bias, left, -1)
        return None

    def _convolution(self, args: tuple[Any, ...]) -> Multiplication | None:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = args
        if groups != 1:
            return None
        window = Window(tuple(stride), tuple(padding), tuple(dilation), transposed)
        return self._known(weight, 0 if transposed else 1, bias, x, 1, window)

    def _known(
        self,
        weight: Tensor,
        into: int,
        bias: Tensor | None,
        x: Tensor,
        channel: int,
        window: Window | None = None,
    ) -> Multiplication | None:
        """The product, if the weight is a parameter or a view of one."""
        known = self._weight(weight, into)
        if known is None:
            return None
        return Multiplication(known, self._bias(bias), x, channel, window)

    def _weight(self, view: Tensor, into: int) -> WeightView | None:
        """The view with the parameter that it shows; None for what is not one."""
        produced = 1 - into
        for name, parameter in self._at(view):
            if parameter.dim() != view.dim() or parameter.dim() < 2:
                continue
            for own_into in (into, produced):
                same_size = parameter.shape[own_into] == view.shape[into]
                if not same_size or parameter.stride(own_into) != view.stride(into):
                    continue
                offset = view.storage_offset() - parameter.storage_offset()
                start = int(offset // max(1, parameter.stride(1 - own_into)))
                last = parameter.shape[1 - own_into] - view.shape[produced]
                if 0 <= start <= last:
                    return WeightView(name, view, into, own_into, start)
        return None

    def _bias(self, bias: Tensor | None) -> BiasView | None:
        if bias is None or bias.dim() != 1:
            return None
        for name, _ in self._at(bias):
            return BiasView(name, bias)
        return None

    def _at(self, view: Tensor) -> list[tuple[str, Tensor]]:
        """The parameters in the storage of this tensor."""
        return self._parameters.get(view.untyped_storage().data_ptr(), [])
