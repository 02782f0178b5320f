"""From labelled axes to numbered units, groups, table and products."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_modules.pruning.discovery.labels import Ids
from lightning_modules.pruning.discovery.trace import RawProduct, Trace
from lightning_modules.pruning.structure import (
    Axis,
    Group,
    Kind,
    Member,
    Product,
    Skipped,
    Structure,
    inside,
)

MARKED: tuple[Kind, ...] = ("head", "head_dim", "conv_group")
"""Kinds that an op gives its units. The first that applies wins over the producing layer's kind."""
Row = npt.NDArray[np.int32]
"""The unit id per position of an axis, -1 = none."""
Table = dict[Axis, Row]
Cluster = list[int]
"""The classes, by their roots, that become the units of one group."""


def assemble(trace: Trace) -> Structure:
    """The structure of a finished walk.

    A unit is a class that a weight produces and nothing freezes. Units on the same axes with the
    same multiplicities make a group; groups are in the order of the graph. Blocks come last, so
    that all other ids are the same without them.
    """
    roots = {axis: trace.labels.roots(ids) for axis, ids in trace.axes.items()}
    clusters = _freeze_singles(trace, _clusters(trace, roots, _free(trace, roots)))
    units = _numbered(clusters)
    table = _table(roots, units)
    blocks = {path: len(units) + index for index, path in enumerate(trace.blocks)}
    groups = _groups(trace, clusters, units, table)
    groups += [Group(path, unit, 1, (), True, "block") for path, unit in blocks.items()]
    prunable = {name for name, dim in trace.producers if (name, dim) in table}
    return Structure(
        groups=tuple(groups),
        table=table,
        macs=tuple(_product(trace, raw, units, blocks) for raw in trace.products),
        params=_parameters(trace.model, table, blocks),
        skipped=_skipped(trace, roots, units),
        layers=len(trace.weights),
        prunable_layers=len(prunable.intersection(trace.weights)),
        source=trace.source,
    )


def _free(trace: Trace, roots: Mapping[Axis, Ids]) -> set[int]:
    """The classes that a weight produces and nothing freezes."""
    reasons = trace.labels.reasons()
    free = set()
    for axis in trace.producers:
        for root in _distinct(roots, axis):
            if reasons[root] is None:
                free.add(root)
    return free


def _distinct(roots: Mapping[Axis, Ids], axis: Axis) -> Iterable[int]:
    """The classes on an axis, each once, in the order of positions."""
    if axis not in roots:
        return ()
    return dict.fromkeys(roots[axis].tolist())


def _clusters(trace: Trace, roots: Mapping[Axis, Ids], free: set[int]) -> list[Cluster]:
    """Free classes by where they occur and how often.

    The factors of products count as places, so that costs are exact.
    """
    rows = list(roots.values())
    for raw in trace.products:
        rows += map(trace.labels.roots, raw.factors)
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, ids in enumerate(rows):
        values, counts = np.unique(ids, return_counts=True)
        for root, count in zip(values.tolist(), counts.tolist(), strict=True):
            places[root].append((index, count))
    clusters: dict[tuple[tuple[int, int], ...], Cluster] = {}
    for axis in trace.producers:
        for root in _distinct(roots, axis):
            if root in free:
                clusters.setdefault(tuple(places.pop(root)), []).append(root)
                free.discard(root)
    return list(clusters.values())


def _freeze_singles(trace: Trace, clusters: Iterable[Cluster]) -> list[Cluster]:
    """Freezes clusters of one class, whose layer could only be removed as a whole."""
    larger = []
    for cluster in clusters:
        if len(cluster) > 1:
            larger.append(cluster)
        else:
            trace.labels.freeze(np.array(cluster), "all its channels live and die together")
    return larger


def _numbered(clusters: Iterable[Cluster]) -> dict[int, int]:
    """The unit ids by class."""
    units: dict[int, int] = {}
    for cluster in clusters:
        for root in cluster:
            units[root] = len(units)
    return units


def _row(ids: Ids, units: Mapping[int, int]) -> Row:
    """The unit at each position of an axis, from the classes on it."""
    return np.array([units.get(root, -1) for root in ids.tolist()], dtype=np.int32)


def _table(roots: Mapping[Axis, Ids], units: Mapping[int, int]) -> Table:
    """The rows of all axes with units; equal ones are one array."""
    table: Table = {}
    distinct: dict[bytes, Row] = {}
    for axis, ids in roots.items():
        row = _row(ids, units)
        if (row >= 0).any():
            table[axis] = distinct.setdefault(row.tobytes(), row)
    return table


def _groups(
    trace: Trace, clusters: Iterable[Cluster], units: Mapping[int, int], table: Table
) -> list[Group]:
    marks = {name: trace.labels.marked(name) for name in ("inexact", *MARKED)}
    members = _members(trace, table)
    order = {axis: index for index, axis in enumerate(trace.producers)}
    times_named = Counter[str]()
    groups = []
    for cluster in clusters:
        start = units[cluster[0]]
        index = np.array(cluster)
        axes = [(member.tensor, member.dim) for member in members[start]]
        axis = min(axes, key=lambda axis: order.get(axis, len(order)))
        kind = trace.producers[axis]
        for mark in reversed(MARKED):
            if marks[mark][index].any():
                kind = mark
        name = _layer_of(axis[0])
        times_named[name] += 1
        if times_named[name] > 1:
            name = f"{name}-{times_named[name]}"
        exact = not marks["inexact"][index].any()
        groups.append(Group(name, start, len(cluster), tuple(members[start]), exact, kind))
    return groups


def _members(trace: Trace, table: Table) -> dict[int, list[Member]]:
    """The axes that hold each unit."""
    members: dict[int, list[Member]] = defaultdict(list)
    for (tensor, dim), row in table.items():
        role: Literal["out", "in"] = "in" if (tensor, dim) in trace.consumers else "out"
        for unit in np.unique(row[row >= 0]).tolist():
            members[unit].append(Member(tensor, dim, role))
    return members


def _layer_of(tensor: str) -> str:
    """The path of the module that holds a tensor; the tensor's own name if the model holds it.

    Of a parametrised tensor it is the module that is parametrised.
    """
    module, _, parametrisation = tensor.partition(".parametrizations.")
    return module if parametrisation else tensor.rpartition(".")[0] or tensor


def _around(name: str, blocks: Mapping[str, int]) -> list[Row]:
    """The factor, 1 or 0, of each block that a module or tensor of this name lies in."""
    factors = []
    for path, unit in blocks.items():
        if inside(name, [path]):
            factors.append(np.array([unit], dtype=np.int32))
    return factors


def _product(
    trace: Trace, raw: RawProduct, units: Mapping[int, int], blocks: Mapping[str, int]
) -> Product:
    constant = raw.constant
    factors = _around(raw.path, blocks)
    for ids in raw.factors:
        row = _row(trace.labels.roots(ids), units)
        if (row >= 0).any():
            factors.append(row)
        else:
            constant *= len(row)
    return Product(raw.name, constant, tuple(factors), raw.tensor)


def _parameters(model: nn.Module, table: Table, blocks: Mapping[str, int]) -> tuple[Product, ...]:
    """The elements of every parameter as a product."""
    products = []
    for name, parameter in model.named_parameters():
        fixed = 1
        factors = _around(name, blocks)
        for dim, size in enumerate(parameter.shape):
            if (name, dim) in table:
                factors.append(table[name, dim])
            else:
                fixed *= size
        products.append(Product(name, fixed, tuple(factors), name))
    return tuple(products)


def _skipped(
    trace: Trace, roots: Mapping[Axis, Ids], units: Mapping[int, int]
) -> tuple[Skipped, ...]:
    """One line for each layer whose outputs stay whole, with the first reason.

    The line of a layer that stays whole in part says how much of it.
    """
    reasons = trace.labels.reasons()
    lines = dict(trace.notes)
    for axis in trace.producers:
        layer = _layer_of(axis[0])
        if axis not in roots:
            lines.setdefault(Skipped(layer, "it has one output only"))
            continue
        ids = roots[axis].tolist()
        whole = [root for root in ids if root not in units]
        if whole:
            reason = _first_reason(reasons, whole) or "no rule reaches it"
            part = "" if len(whole) == len(ids) else f"{len(whole)} of {len(ids)} outputs: "
            lines.setdefault(Skipped(layer, part + reason))
    return tuple(lines)


def _first_reason(reasons: list[str | None], roots: Iterable[int]) -> str | None:
    for root in roots:
        if reasons[root]:
            return reasons[root]
    return None
