"""Physical shrinking.

Every tensor is cut by one selection per dimension; then the modules are copied around the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.clone import clone
from lightning_modules.pruning.depth import PassThrough
from lightning_modules.pruning.repair import repair
from lightning_modules.pruning.structure import AttentionUnit, Keep, Structure, inside
from lightning_modules.pruning.structure import dropped as blocks_dropped

Cuts = dict[str, list[tuple[int, Tensor]]]
"""By tensor: (dimension, indices kept) of every dimension that is cut."""


def remove(model: nn.Module, structure: Structure, keep: Keep) -> nn.Module:
    """A smaller copy of `model`, which is not changed itself.

    `structure` is that of `model`; `keep` is over the units of the dense model. The values of the
    copy are bit-identical to those kept, in new contiguous tensors.
    Errors: PlanError if `keep` has another shape or empties a group, or if `structure` is that of
    another model.
    """
    named = _named(model)
    tensors = _slices(named, structure, keep)
    gone = blocks_dropped(structure, keep)
    return _rebuild(model, named, tensors, gone, structure.attention)


@torch.no_grad()
def _slices(named: dict[str, Tensor], structure: Structure, keep: Keep) -> dict[str, Tensor]:
    cuts = _selections(named, structure, keep)
    return {name: cut_tensor(named[name], of_tensor) for name, of_tensor in cuts.items()}


def selections(model: nn.Module, structure: Structure, keep: Keep) -> Cuts:
    """(dimension, indices kept) of every parameter and buffer, by name.

    The list is empty for tensors that stay whole.
    Errors: as in `remove`.
    """
    return _selections(_named(model), structure, keep)


def state_shapes(model: nn.Module, structure: Structure, keep: Keep) -> dict[str, tuple[int, ...]]:
    """The shape of each entry of the smaller model's state dict, by name. Cuts nothing.

    Errors: as in `remove`.
    """
    named = _named(model)
    gone = blocks_dropped(structure, keep)
    cuts = _selections(named, structure, keep)
    first_names = _first_names(named)
    shapes = {}
    for name in model.state_dict(keep_vars=True):
        if inside(name, gone) or name not in named:
            continue
        tensor = named[name]
        shape = list(tensor.shape)
        for dim, index in cuts.get(first_names[id(tensor)], ()):
            shape[dim] = len(index)
        shapes[name] = tuple(shape)
    return shapes


def _first_names(named: Mapping[str, Tensor]) -> dict[int, str]:
    """The first of each tensor's names, by the tensor's id."""
    first_names: dict[int, str] = {}
    for name, tensor in named.items():
        first_names.setdefault(id(tensor), name)
    return first_names


def _selections(tensors: dict[str, Tensor], structure: Structure, keep: Keep) -> Cuts:
    _validate(structure, keep)
    gone = blocks_dropped(structure, keep)
    cuts: Cuts = {}
    for name in _first_names(tensors).values():
        if not inside(name, gone):
            cuts[name] = []
    indices: dict[int, Tensor | None] = {}
    for (name, dim), row in structure.table.items():
        if inside(name, gone):
            continue
        if name not in cuts or tensors[name].shape[dim] != len(row):
            shape = list(tensors[name].shape) if name in cuts else "nothing"
            raise PlanError(
                f"the structure must be that of the model: it has {len(row)} positions on axis "
                f"{dim} of {name}, the model {shape}; for a pruned model pass "
                "structure.restrict(its keep)"
            )
        if id(row) not in indices:  # discovery gives equal axes one array
            indices[id(row)] = _kept_positions(row, keep)
        index = indices[id(row)]
        if index is not None:
            cuts[name].append((dim, index))
    return cuts


def _kept_positions(row: npt.NDArray[np.int32], keep: Keep) -> Tensor | None:
    """The positions of an axis that stay; None if all do."""
    kept = np.flatnonzero((row < 0) | keep[row])
    return torch.from_numpy(kept) if len(kept) < len(row) else None


def cut_tensor(tensor: Tensor, cuts: list[tuple[int, Tensor]]) -> Tensor:
    """The kept positions in a new tensor with default strides.

    `contiguous()` would keep the channels-last strides of a weight with one input channel, and
    these strides would spread to the tensors computed from it.
    """
    for dim, index in cuts[:-1]:
        tensor = tensor.index_select(dim, index.to(tensor.device))
    if not cuts:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    dim, index = cuts[-1]
    shape = list(tensor.shape)
    shape[dim] = len(index)
    out = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    return torch.index_select(tensor, dim, index.to(tensor.device), out=out)


def rebuild(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    dropped: Sequence[str] = (),
    attention: AttentionUnit = "head",
) -> nn.Module:
    """A copy of the modules of `model` around `tensors`, which may have other sizes.

    The attributes of modules are brought in line with the sizes. `dropped` are the paths of modules
    that become `PassThrough`; `attention` is that of the structure that cut `tensors`. The copy
    uses `tensors` without copying them, and clones from `model` those that are not named.
    Parameters keep `requires_grad`, and shared ones stay shared; gradients are not copied.
    Errors: PlanError for a name that the model does not have, or for a tensor with another number
    of dimensions.
    """
    return _rebuild(model, _named(model), tensors, dropped, attention)


def _rebuild(
    model: nn.Module,
    named: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    dropped: Sequence[str],
    attention: AttentionUnit,
) -> nn.Module:
    memo = _identities(model, dropped) if dropped else {}
    aliases: dict[int, list[str]] = {}
    for name, tensor in named.items():
        if not inside(name, dropped):
            aliases.setdefault(id(tensor), []).append(name)
    unknown = set(tensors).difference(*aliases.values())
    if unknown:
        raise PlanError(
            f"tensors must have names of the model; it has no {sorted(unknown)[:5]}; rebuild from "
            "the same dense model"
        )
    for key, names in aliases.items():
        memo[key] = _replacement(named[names[0]], names, tensors)
    smaller = clone(model, memo)
    repair(smaller, attention)
    return smaller


def _replacement(old: Tensor, names: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor given under one of a tensor's names, or else a clone of it."""
    new: Tensor | None = None
    for name in names:
        if name in tensors:
            new = tensors[name]
            break
    if new is None:
        new = cut_tensor(old.detach(), [])
    elif new.dim() != old.dim():
        raise PlanError(
            f"{names[0]} must have {old.dim()} dimensions, not {new.dim()}; "
            "rebuild from the same dense model"
        )
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _identities(model: nn.Module, paths: Sequence[str]) -> dict[int, Any]:
    """What replaces the modules at `paths`, by their id."""
    modules = dict(model.named_modules())
    unknown = sorted(set(paths) - set(modules))
    if unknown:
        raise PlanError(
            f"dropped blocks must be modules of the model; it has no {unknown[:5]}; rebuild from "
            "the same dense model"
        )
    return {id(modules[path]): PassThrough().train(modules[path].training) for path in paths}


def _named(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Every name of every parameter and buffer, in the order of `named_modules`.

    The generators of `nn.Module` would take longer than cutting a small model.
    """
    named: dict[str, Tensor] = {}
    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is not None:
                named[prefix + name] = tensor
    for name, child in module._modules.items():
        if child is not None:
            named.update(_named(child, f"{prefix}{name}."))
    return named


def _validate(structure: Structure, keep: Keep) -> None:
    if keep.shape != (structure.n_units,) or keep.dtype != np.bool_:
        raise PlanError(
            f"keep must be one boolean per unit of the dense model, shape ({structure.n_units},); "
            f"got {keep.dtype} of shape {keep.shape}"
        )
    short = structure.counts(keep) < structure.least
    empty = [structure.groups[index].name for index in np.flatnonzero(short)]
    if empty:
        raise PlanError(
            f"every group keeps at least one unit; {empty[:5]} would be empty; lower their "
            "thresholds"
        )
