"""From labelled axes to numbered units, groups, table and products."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
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
"""Kinds that an op gives its units, the first that applies; else it is that of the producing layer."""
Row = npt.NDArray[np.int32]


def assemble(trace: Trace) -> Structure:
    """The structure of a finished walk.

    Units are classes that a weight produces and nothing freezes; those on the same axes with the same
    multiplicities make a group, in the order of the graph. Blocks come last, so that all other ids stay without them.
    """
    reasons = trace.labels.reasons()
    roots = {axis: trace.labels.roots(ids) for axis, ids in trace.axes.items()}
    produced = {int(r) for axis in trace.producers for r in roots.get(axis, ())}
    free = {root for root in produced if reasons[root] is None}
    clusters = _cluster(trace, roots, free)
    for members in [c for c in clusters if len(c) < 2]:
        clusters.remove(members)
        trace.labels.freeze(np.array(members), "all its channels live and die together")
    reasons = trace.labels.reasons()
    units = {
        root: unit for unit, root in enumerate(root for members in clusters for root in members)
    }
    table: dict[Axis, Row] = {}
    rows: dict[bytes, Row] = {}
    for axis, ids in roots.items():
        row = np.array([units.get(int(root), -1) for root in ids], dtype=np.int32)
        if (row >= 0).any():
            table[axis] = rows.setdefault(row.tobytes(), row)
    blocks = {path: len(units) + index for index, path in enumerate(trace.blocks)}
    prunable = {name for name, dim in trace.producers if (name, dim) in table}
    return Structure(
        groups=(
            *_groups(trace, clusters, units, table),
            *(Group(path, unit, 1, (), True, "block") for path, unit in blocks.items()),
        ),
        table=table,
        macs=tuple(_product(trace, raw, units, blocks) for raw in trace.products),
        params=_parameters(trace.model, table, blocks),
        skipped=_skipped(trace, roots, units, reasons),
        layers=len(trace.weights),
        prunable_layers=sum(name in prunable for name in trace.weights),
        source=trace.source,
    )


def _cluster(trace: Trace, roots: Mapping[Axis, Ids], free: set[int]) -> list[list[int]]:
    """Classes by where they occur and how often; the factors of products count, so that costs stay exact."""
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    rows = [
        *roots.values(),
        *(trace.labels.roots(f) for raw in trace.products for f in raw.factors),
    ]
    for index, ids in enumerate(rows):
        values, counts = np.unique(ids, return_counts=True)
        for root, count in zip(values.tolist(), counts.tolist(), strict=True):
            places[root].append((index, count))
    clusters: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for axis in trace.producers:
        for root in dict.fromkeys(roots[axis].tolist() if axis in roots else ()):
            if root in free:
                clusters.setdefault(tuple(places.pop(root)), []).append(root)
                free.discard(root)
    return list(clusters.values())


def _groups(
    trace: Trace, clusters: list[list[int]], units: Mapping[int, int], table: Mapping[Axis, Row]
) -> tuple[Group, ...]:
    marks = {name: trace.labels.marked(name) for name in ("inexact", *MARKED)}
    members: dict[int, list[Member]] = defaultdict(list)
    for (tensor, dim), row in table.items():
        role: Literal["out", "in"] = "in" if (tensor, dim) in trace.consumers else "out"
        for unit in np.unique(row[row >= 0]).tolist():
            members[unit].append(Member(tensor, dim, role))
    order = {axis: i for i, axis in enumerate(trace.producers)}
    groups, taken = [], Counter[str]()
    for roots in clusters:
        start, index = units[roots[0]], np.array(roots)
        axis = min(
            ((m.tensor, m.dim) for m in members[start]), key=lambda a: order.get(a, len(order))
        )
        marked = (kind for kind in MARKED if marks[kind][index].any())
        kind = next(marked, trace.producers[axis])
        name = axis[0].rpartition(".")[0] or axis[0]
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}-{taken[name]}"
        exact = not marks["inexact"][index].any()
        groups.append(Group(name, start, len(roots), tuple(members[start]), exact, kind))
    return tuple(groups)


def _around(name: str, blocks: Mapping[str, int]) -> list[Row]:
    """One factor, 1 or 0, for the block that this lies in."""
    return [
        np.array([unit], dtype=np.int32) for path, unit in blocks.items() if inside(name, [path])
    ]


def _product(
    trace: Trace, raw: RawProduct, units: Mapping[int, int], blocks: Mapping[str, int]
) -> Product:
    constant, factors = raw.constant, _around(raw.path, blocks)
    for ids in raw.factors:
        row = np.array([units.get(int(r), -1) for r in trace.labels.roots(ids)], dtype=np.int32)
        if (row >= 0).any():
            factors.append(row)
        else:
            constant *= len(row)
    return Product(raw.name, constant, tuple(factors), raw.tensor)


def _parameters(
    model: nn.Module, table: Mapping[Axis, Row], blocks: Mapping[str, int]
) -> tuple[Product, ...]:
    products = []
    for name, parameter in model.named_parameters():
        fixed, factors = 1, _around(name, blocks)
        for dim, size in enumerate(parameter.shape):
            if (name, dim) in table:
                factors.append(table[name, dim])
            else:
                fixed *= size
        products.append(Product(name, fixed, tuple(factors), name))
    return tuple(products)


def _skipped(
    trace: Trace, roots: Mapping[Axis, Ids], units: Mapping[int, int], reasons: list[str | None]
) -> tuple[Skipped, ...]:
    """One line per layer whose outputs stay whole, with the first reason; partly frozen ones say how much."""
    lines = dict(trace.notes)
    for (tensor, dim), _ in trace.producers.items():
        ids = roots.get((tensor, dim))
        layer = tensor.rpartition(".")[0] or tensor
        if ids is None:
            lines.setdefault(Skipped(layer, "it has one output only"))
            continue
        whole = [int(r) for r in ids if int(r) not in units]
        if whole:
            why = next((reasons[r] for r in whole if reasons[r]), None) or "no rule reaches it"
            part = "" if len(whole) == len(ids) else f"{len(whole)} of {len(ids)} outputs: "
            lines.setdefault(Skipped(layer, part + why))
    return tuple(lines)
