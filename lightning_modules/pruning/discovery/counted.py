"""Counts what a model multiplies where it is computed, at torch's dispatcher."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from lightning_modules.pruning.discovery.trace import RawProduct, Trace
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Skipped

_aten = torch.ops.aten


@dataclass(frozen=True)
class Counted:
    """One product of the forward pass: its MACs, and the module whose forward computes it.

    `weight` is the operand that may be a parameter, or a view of one.
    """

    op: str
    macs: int
    path: str
    weight: Tensor


class ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every convolution and matrix product, as torch's `FlopCounterMode` counts them,
    and those of a matrix with a vector, which it leaves out.

    Attention takes the path that is made of matrix products, and recurrent layers that of linear
    ones.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Counted] = []
        self._model = model
        self._stack = [""]

    @property
    def macs(self) -> int:
        return sum(product.macs for product in self.found)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        rule = _RULES.get(func.overloadpacket)
        if rule is not None:
            macs, weight = rule(args, out)
            self.found.append(Counted(func.overloadpacket.__name__, macs, self._stack[-1], weight))
        return out

    def enter(self, path: str) -> Callable[..., None]:
        """A hook for the start of a module's forward."""
        return lambda *_: self._stack.append(path)

    def leave(self, *_: object) -> None:
        """A hook for the end of a module's forward."""
        self._stack.pop()


@contextmanager
def multiplications(model: nn.Module) -> Iterator[ProductCounter]:
    """Inside the `with` block the products of the model's forward passes are recorded."""
    counter = ProductCounter(model)
    handles: list[RemovableHandle] = []
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(counter.enter(path), prepend=True))
                handles.append(module.register_forward_hook(counter.leave, always_call=True))
        for handle in handles:
            stack.callback(handle.remove)
        stack.enter_context(_unfused())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(counter)
        yield counter


@contextmanager
def _unfused() -> Iterator[None]:
    """Inside the `with` block recurrent layers are made of matrix products, which can be seen."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [library.enabled for library in libraries]
    for library in libraries:
        library.enabled = False
    try:
        yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


def complete(trace: Trace, inputs: Inputs) -> None:
    """Add to a finished walk, as constants, the MACs that its products lack; notes say which.

    Then the dense model's MACs are what is counted when it runs. Groups for which a constant is
    wrong fail verification.
    """
    with torch.no_grad(), multiplications(trace.model) as counter:
        _in_its_type(trace.model, inputs).call(trace.model)
    closed = Counter[str]()
    for raw in trace.products:
        closed[raw.path] += raw.constant * math.prod(map(len, raw.factors))
    if closed.total() == counter.macs:
        return
    counted = Counter[str]()
    ops: dict[str, dict[str, None]] = {}
    for product in counter.found:
        counted[product.path] += product.macs
        ops.setdefault(product.path, {})[product.op] = None
    for path in {**counted, **closed}:
        rest = counted[path] - closed[path]
        if rest:
            trace.products.append(RawProduct(path or "forward", rest, (), "", path))
            names = ", ".join(ops.get(path, {"code outside of modules": None}))
            reason = f"{rest:,} MACs ({names}) are known for the dense model only"
            trace.notes.setdefault(Skipped(path or "forward", reason))


def _in_its_type(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs, with floats of the type of the model's first parameter of floats.

    The export does not mind an example in another precision than the model's.
    """
    types = [p.dtype for p in model.parameters() if p.is_floating_point()]
    if not types:
        return inputs
    return inputs.map(lambda x: x.to(types[0]) if x.is_floating_point() else x)


def parameter_products(trace: Trace, inputs: Inputs) -> None:
    """Record every product of one forward pass in a trace that has no products yet.

    Axes of parameters that the trace knows become factors. All else is constant.
    """
    by_storage: dict[int, tuple[str, Tensor]] = {}
    parameters: dict[str, Tensor] = dict(trace.model.named_parameters())
    for name, parameter in parameters.items():
        by_storage[parameter.untyped_storage().data_ptr()] = (name, parameter)
    with torch.no_grad(), multiplications(trace.model) as counter:
        _in_its_type(trace.model, inputs).call(trace.model)
    for product in counter.found:
        trace.path = product.path
        storage = product.weight.untyped_storage().data_ptr()
        name, parameter = by_storage.get(storage, ("", product.weight))
        whole = name and parameter.numel() == product.weight.numel() and parameter.dim() > 1
        if not whole:
            trace.multiply(product.path or "forward", [], [], product.macs, name)
            continue
        sizes = list(parameter.shape[:2])
        labels = [trace.axes.get((name, dim), "") for dim in (0, 1)]
        constant = product.macs // math.prod(sizes)
        trace.multiply(product.path or "forward", sizes, labels, constant, name)


def _convolution(args: tuple[Any, ...], out: Tensor) -> tuple[int, Tensor]:
    x, weight, transposed = args[0], args[1], args[6]
    places = x if transposed else out
    spatial = math.prod(places.shape[2:])
    return x.shape[0] * spatial * weight.numel(), weight


def _linear(args: tuple[Any, ...], out: Tensor) -> tuple[int, Tensor]:
    return out.numel() * args[1].shape[-1], args[1]


def _matrices(first: int) -> Callable[[tuple[Any, ...], Tensor], tuple[int, Tensor]]:
    """For products whose operands are the arguments `first` and `first + 1`."""

    def rule(args: tuple[Any, ...], out: Tensor) -> tuple[int, Tensor]:
        left, right = args[first : first + 2]
        return left.numel() * right.shape[-1], right

    return rule


_RULES: dict[Any, Callable[[tuple[Any, ...], Tensor], tuple[int, Tensor]]] = {
    _aten.convolution: _convolution,
    _aten._convolution: _convolution,
    _aten.linear: _linear,
    _aten.mv: lambda args, out: (args[0].numel(), args[1]),
    _aten.mm: _matrices(0),
    _aten.bmm: _matrices(0),
    _aten.addmm: _matrices(1),
    _aten.baddbmm: _matrices(1),
}
"""(MACs, right operand) of a product, by its op."""
