"""Whole residual blocks: modules that hand their input on unchanged when all their parameters are zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import inside


def droppable(model: nn.Module, inputs: Inputs) -> list[str]:
    """Paths of the innermost modules that `nn.Identity` can stand in for, in the order of `named_modules`.

    Such a module is called once, with one tensor and nothing else, gives one of the same shape and dtype, and shares
    no parameter with the rest. `model` must be in eval mode with randomised parameters, which show what zeros hide;
    inputs ten times as large show what saturates.
    """
    names = _names(model)
    found: list[str] | None = None
    for scale in (1, 10):
        scaled = inputs.map(partial(_scaled, scale=scale))
        calls = _calls(model, scaled)
        passing = _innermost({path: x for path, x in calls.items() if _own(names, path)}, model)
        found = passing if found is None else [path for path in found if path in passing]
    return found or []


def _scaled(x: Tensor, scale: int) -> Tensor:
    return x * scale if x.is_floating_point() else x


def _innermost(calls: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    found: set[str] = set()
    for path in sorted(calls, key=lambda path: -path.count(".")):
        if not any(inside(inner, [path]) for inner in found) and _hands_on(
            model.get_submodule(path), calls[path]
        ):
            found.add(path)
    return [path for path in calls if path in found]


def _calls(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """What each module with parameters was given, if it was called once, as `droppable` says."""
    calls: dict[str, list[Tensor | None]] = {}
    handles = []
    for path, module in model.named_modules():
        if path and any(True for _ in module.parameters()):
            seen = calls.setdefault(path, [])
            handles.append(module.register_forward_pre_hook(_before(seen), with_kwargs=True))
            handles.append(module.register_forward_hook(_after(seen)))
    try:
        with torch.no_grad():
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return {path: seen[0] for path, seen in calls.items() if len(seen) == 1 and seen[0] is not None}


def _before(seen: list[Tensor | None]) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        alone = len(args) == 1 and not options and isinstance(args[0], Tensor)
        seen.append(args[0].clone() if alone else None)

    return record


def _after(seen: list[Tensor | None]) -> Any:
    def compare(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        given = seen[-1]
        same = isinstance(output, Tensor) and given is not None
        if not (same and output.shape == given.shape and output.dtype == given.dtype):  # type: ignore[attr-defined, union-attr]
            seen[-1] = None

    return compare


def _hands_on(module: nn.Module, x: Tensor) -> bool:
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        return torch.equal(twin(x.clone()), x)


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter and buffer."""
    names: dict[int, list[str]] = {}
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in named:
            names.setdefault(id(tensor), []).append(name)
    return names


def _own(names: Mapping[int, list[str]], path: str) -> bool:
    """Whether no tensor below `path` has a name outside it."""
    return all(
        all(inside(name, [path]) for name in several)
        for several in names.values()
        if any(inside(name, [path]) for name in several)
    )
