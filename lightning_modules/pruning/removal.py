"""Physical shrinking: one selection per (tensor, dimension), then a copy of the modules around the new tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.clone import clone
from lightning_modules.pruning.repair import repair
from lightning_modules.pruning.structure import AttentionUnit, Keep, Structure, inside
from lightning_modules.pruning.structure import dropped as blocks_dropped


def remove(model: nn.Module, structure: Structure, keep: Keep) -> nn.Module:
    """A smaller copy of `model`; `structure` is that of `model`, `keep` is over the units of the dense model.

    Values are bit-identical to those kept, in fresh contiguous tensors; `model` is left as it was.
    Errors: PlanError if `keep` has another shape, empties a group, or `structure` is that of another model.
    """
    named = _named(model)
    with torch.no_grad():
        tensors = {
            name: select(named[name], cuts)
            for name, cuts in _selections(named, structure, keep).items()
        }
    return _rebuild(model, named, tensors, blocks_dropped(structure, keep), structure.attention)


def check(structure: Structure, keep: Keep) -> None:
    """Errors: PlanError as in `remove`, and for a plan that removes nothing."""
    _validate(structure, keep)
    if keep.all():
        raise PlanError(
            f"a plan removes at least one unit; this one keeps all {len(keep)}; raise a threshold or skip the plan"
        )


def slices(model: nn.Module, structure: Structure, keep: Keep) -> dict[str, Tensor]:
    """Every parameter and buffer of the smaller model, by name (a shared one by its first name).

    Errors: as in `remove`.
    """
    named = _named(model)
    with torch.no_grad():
        return {
            name: select(named[name], cuts)
            for name, cuts in _selections(named, structure, keep).items()
        }


def selections(
    model: nn.Module, structure: Structure, keep: Keep
) -> dict[str, list[tuple[int, Tensor]]]:
    """What stays of every parameter and buffer, by name: (dimension, indices kept), [] for those that stay whole.

    Errors: as in `remove`.
    """
    return _selections(_named(model), structure, keep)


def state_shapes(model: nn.Module, structure: Structure, keep: Keep) -> dict[str, tuple[int, ...]]:
    """The shape of each entry of the smaller model's state dict, by name; nothing is cut.

    Errors: as in `remove`.
    """
    named, gone = _named(model), blocks_dropped(structure, keep)
    cuts = _selections(named, structure, keep)
    firsts = {id(tensor): name for name, tensor in reversed(named.items())}
    found = {}
    for name in model.state_dict(keep_vars=True):
        if inside(name, gone) or name not in named:
            continue
        shape = list(named[name].shape)
        for dim, index in cuts.get(firsts[id(named[name])], ()):
            shape[dim] = len(index)
        found[name] = tuple(shape)
    return found


def _selections(
    tensors: dict[str, Tensor], structure: Structure, keep: Keep
) -> dict[str, list[tuple[int, Tensor]]]:
    _validate(structure, keep)
    gone = blocks_dropped(structure, keep)
    firsts = {id(tensor): name for name, tensor in reversed(tensors.items())}
    cuts: dict[str, list[tuple[int, Tensor]]] = {
        name: []
        for name, tensor in tensors.items()
        if firsts[id(tensor)] == name and not inside(name, gone)
    }
    known: dict[int, Tensor | None] = {}
    for (name, dim), row in structure.table.items():
        if inside(name, gone):
            continue
        if name not in cuts or tensors[name].shape[dim] != len(row):
            found = list(tensors[name].shape) if name in cuts else "nothing"
            raise PlanError(
                f"the structure must be that of the model: it has {len(row)} positions on axis {dim} of {name}, the "
                f"model {found}; for a pruned model pass structure.restrict(its keep)"
            )
        if id(row) not in known:  # Discovery gives equal axes one array.
            kept = np.flatnonzero((row < 0) | keep[row])
            known[id(row)] = torch.from_numpy(kept) if len(kept) < len(row) else None
        index = known[id(row)]
        if index is not None:
            cuts[name].append((dim, index))
    return cuts


def select(tensor: Tensor, cuts: list[tuple[int, Tensor]]) -> Tensor:
    """The kept positions in a fresh tensor with default strides.

    `contiguous()` would keep the channels-last strides of a weight with one input channel, which then spread.
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
    """A copy of the modules of `model` around `tensors`, which may have other sizes; attributes are mended.

    `dropped` are paths of modules that become `nn.Identity`; `attention` is that of the structure that cut `tensors`.
    The copy takes over `tensors` without copying them; those it does not name are cloned from `model`. Parameters
    keep `requires_grad`, shared ones stay shared; gradients are not copied.
    Errors: PlanError for a name the model does not have or a tensor with another number of dimensions.
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
    originals: dict[int, Tensor] = {}
    for name, tensor in named.items():
        if inside(name, dropped):
            continue
        aliases.setdefault(id(tensor), []).append(name)
        originals[id(tensor)] = tensor
    unknown = set(tensors) - {n for names in aliases.values() for n in names}
    if unknown:
        raise PlanError(
            f"tensors must have names of the model; it has no {sorted(unknown)[:5]}; rebuild from the same dense model"
        )
    for key, old in originals.items():
        new = next((tensors[name] for name in aliases[key] if name in tensors), None)
        if new is None:
            new = select(old.detach(), [])
        elif new.dim() != old.dim():
            raise PlanError(
                f"{aliases[key][0]} must have {old.dim()} dimensions, not {new.dim()}; "
                "rebuild from the same dense model"
            )
        memo[key] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    smaller = clone(model, memo)
    repair(smaller, attention)
    return smaller


def _identities(model: nn.Module, paths: Sequence[str]) -> dict[int, Any]:
    """What stands in for the modules at `paths`, by their id."""
    modules = dict(model.named_modules())
    if unknown := sorted(set(paths) - set(modules)):
        raise PlanError(
            f"dropped blocks must be modules of the model; it has no {unknown[:5]}; rebuild from the same dense model"
        )
    return {id(modules[path]): nn.Identity().train(modules[path].training) for path in paths}


def _named(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Every name of every parameter and buffer, in the order of `named_modules`.

    One walk of our own: the generators of `nn.Module` take longer than cutting a small model.
    """
    held = (*module._parameters.items(), *module._buffers.items())
    named = {prefix + name: tensor for name, tensor in held if tensor is not None}
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
    empty = [group.name for group, wanting in zip(structure.groups, short, strict=True) if wanting]
    if empty:
        raise PlanError(
            f"every group keeps at least one unit; {empty[:5]} would be empty; lower their thresholds"
        )
