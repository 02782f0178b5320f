"""Layers that stay whole because the user says so, or because their weights are frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.structure import Group, Product, Skipped, Structure, inside
from lightning_modules.recipe import nearest

FROZEN = "its weights are frozen (method.prune_frozen=true prunes them)"
KEPT = "kept by method.keep"


def tensors_to_keep(
    model: nn.Module, patterns: Sequence[str], prune_frozen: bool
) -> dict[str, str]:
    """Parameters that lose nothing, by name, and why.

    A pattern is the name of a module or a parameter, with `*`, `?` and `[...]` as in file names; it
    stands for everything inside of it. Without `prune_frozen`, weights that need no gradient stay
    whole, too. Biases and the scales of norms do not count: they go with their layer's channels.
    Errors: ConfigError for a pattern that nothing fits.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    reasons: dict[str, str] = {}
    for pattern in patterns:
        fitting = [name for name in names if _fits(name, pattern)]
        if not fitting:
            modules = [name for name, _ in model.named_modules() if name]
            raise ConfigError(
                f"method.keep must name layers of the model, as in job=inspect; nothing fits "
                f"'{pattern}'{nearest(pattern, modules)}"
            )
        reasons |= dict.fromkeys(fitting, KEPT)
    if prune_frozen:
        return reasons
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad and parameter.dim() > 1:
            reasons.setdefault(name, FROZEN)
    return reasons


def _fits(name: str, pattern: str) -> bool:
    """Whether the pattern fits a parameter's name, or that of a module around it."""
    parts = name.split(".")
    around = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(fnmatchcase(path, pattern) for path in around)


def left_whole(structure: Structure, reasons: Mapping[str, str]) -> Structure:
    """The structure without the groups that a tensor in `reasons` is a member of.

    So a layer that stays whole keeps its inputs as well as its outputs. Blocks that hold such a
    tensor stay, too. Its layers are skipped with the reason, and single weights of these tensors
    are not pruned either.
    """
    if not reasons:
        return structure
    why: dict[int, str] = {}
    for index, group in enumerate(structure.groups):
        for tensor in _tensors_of(group, reasons):
            why.setdefault(index, reasons[tensor])
    left = [group for index, group in enumerate(structure.groups) if index not in why]
    units = np.full(structure.n_units + 1, -1, dtype=np.int32)  # the last one is that of id -1
    groups = []
    start = 0
    for group in left:
        units[group.units] = np.arange(start, start + group.size)
        groups.append(replace(group, start=start))
        start += group.size
    rows: dict[int, npt.NDArray[np.int32]] = {}
    table = {}
    for axis, row in structure.table.items():
        shared = rows.setdefault(id(row), units[row])
        if (shared >= 0).any():
            table[axis] = shared
    weights = {product.tensor for product in structure.macs if product.tensor}
    lost = _layers(structure.groups, weights) - _layers(left, weights)
    return replace(
        structure,
        groups=tuple(groups),
        table=table,
        macs=tuple([_fixed(product, units) for product in structure.macs]),
        params=tuple([_fixed(product, units) for product in structure.params]),
        skipped=(*structure.skipped, *_skipped(structure, why, lost)),
        prunable_layers=structure.prunable_layers - len(lost),
        whole=dict(reasons),
    )


def _tensors_of(group: Group, names: Iterable[str]) -> list[str]:
    """Those of the names that the group has a share in."""
    if group.kind == "block":
        return [name for name in names if inside(name, (group.name,))]
    members = {member.tensor for member in group.members}
    return [name for name in names if name in members]


def _layers(groups: Iterable[Group], weights: set[str]) -> set[str]:
    """Weights whose outputs the groups prune."""
    layers = set()
    for group in groups:
        for member in group.members:
            if member.role == "out" and member.tensor in weights:
                layers.add(member.tensor)
    return layers


def _skipped(structure: Structure, why: Mapping[int, str], lost: set[str]) -> list[Skipped]:
    """A line for each layer that stays whole, with the reason of its group."""
    skipped: dict[str, Skipped] = {}
    for index, reason in why.items():
        group = structure.groups[index]
        if group.kind == "block":
            skipped.setdefault(group.name, Skipped(group.name, reason))
        for member in group.members:
            if member.tensor in lost:
                name = member.tensor.rpartition(".")[0]
                skipped.setdefault(name, Skipped(name, reason))
    return list(skipped.values())


def _fixed(product: Product, units: npt.NDArray[np.int32]) -> Product:
    """The product with new unit ids; axes without a unit go into its constant."""
    factors = [units[factor] for factor in product.factors]
    fixed = [len(factor) for factor in factors if (factor < 0).all()]
    free = [factor for factor in factors if (factor >= 0).any()]
    constant = product.constant * math.prod(fixed)
    return replace(product, constant=constant, factors=tuple(free))
