"""Whole residual blocks: modules that return their input unchanged if all their parameters are
0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import inside

SCALES = (1, 10)
"""Factors of the inputs at which a module is tried: what saturates shows only at large inputs."""


class PassThrough(nn.Identity):
    """Stands where a block was: it returns its first input, whatever else it is called with."""

    def forward(self, input: Tensor, *others: object, **options: object) -> Tensor:
        return input


@dataclass(frozen=True)
class _Call:
    """What a module was called with: `x` first, then other arguments such as masks."""

    x: Tensor
    others: tuple[Any, ...]
    options: Mapping[str, Any]


def droppable(model: nn.Module, inputs: Inputs) -> list[str]:
    """Paths of the innermost modules that `PassThrough` can replace, in `named_modules` order.

    Such a module is called once, with a tensor first. It returns a tensor of the same
    shape and dtype, and shares no parameter with the rest. `model` must be in eval mode with
    randomised parameters, because zeros may hide a module's effect. Inputs ten times as large
    reveal what saturates.
    """
    names = _names(model)
    passing: list[str] | None = None
    for scale in SCALES:
        calls = _calls(model, inputs.map(partial(_scaled, scale=scale)))
        candidates = {path: call for path, call in calls.items() if _owns_tensors(names, path)}
        passing_now = _innermost(candidates, model)
        still_passing = passing_now if passing is None else passing
        passing = [path for path in still_passing if path in passing_now]
    return passing or []


def _scaled(x: Tensor, scale: int) -> Tensor:
    return x * scale if x.is_floating_point() else x


def _innermost(calls: Mapping[str, _Call], model: nn.Module) -> list[str]:
    """Those of the called modules that return their input when zeroed, and contain no other
    such.
    """
    deepest_first = sorted(calls, key=lambda path: -path.count("."))
    chosen: set[str] = set()
    for path in deepest_first:
        contains_chosen = any(inside(inner, [path]) for inner in chosen)
        if not contains_chosen and _returns_input(model.get_submodule(path), calls[path]):
            chosen.add(path)
    return [path for path in calls if path in chosen]


def _calls(model: nn.Module, inputs: Inputs) -> dict[str, _Call]:
    """The call of each module with parameters that was called once, as `droppable` says."""
    calls: dict[str, list[_Call | None]] = {}
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        if path and next(module.parameters(), None) is not None:
            seen = calls.setdefault(path, [])
            handles.append(module.register_forward_pre_hook(_before(seen), with_kwargs=True))
            handles.append(module.register_forward_hook(_after(seen)))
    try:
        with torch.no_grad():
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    single: dict[str, _Call] = {}
    for path, seen in calls.items():
        if len(seen) == 1 and seen[0] is not None:
            single[path] = seen[0]
    return single


def _before(seen: list[_Call | None]) -> Any:
    """A hook that records the call, None if it does not begin with a tensor."""

    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append(_call(args, options))

    return record


def _call(args: tuple[Any, ...], options: Mapping[str, Any]) -> _Call | None:
    """The call as it is before the block writes into it, as decoders do into their caches.

    None where no tensor comes first, or something cannot be copied.
    """
    if not args or not isinstance(args[0], Tensor):
        return None
    try:
        others, named = copy.deepcopy((args[1:], options))
    except Exception:  # whatever a user's object raises
        return None
    return _Call(args[0].clone(), others, named)


def _after(seen: list[_Call | None]) -> Any:
    """A hook that replaces the recorded call by None if the output does not look like its input."""

    def compare(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        call = seen[-1]
        if call is not None and not _alike(output, call.x):
            seen[-1] = None

    return compare


def _alike(output: object, x: Tensor) -> bool:
    """Whether it is a tensor of the same shape and dtype."""
    return isinstance(output, Tensor) and output.shape == x.shape and output.dtype == x.dtype


def _returns_input(module: nn.Module, call: _Call) -> bool:
    """Whether the module with all parameters at zero returns exactly its first input."""
    twin = copy_of(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        try:
            output = twin(call.x.clone(), *call.others, **call.options)
        except Exception:  # whatever the model's own code raises at zeros
            return False
        return torch.equal(output, call.x)


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter and buffer, by the tensor's id."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        names.setdefault(id(buffer), []).append(name)
    return names


def _owns_tensors(names: Mapping[int, list[str]], path: str) -> bool:
    """Whether no tensor below `path` has a name outside it."""
    for aliases in names.values():
        below = [name for name in aliases if inside(name, [path])]
        if below and len(below) < len(aliases):
            return False
    return True
