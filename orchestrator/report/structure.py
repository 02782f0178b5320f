"""The groups of a network as a table that fits a window."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.structure import Group, Skipped, Structure
from orchestrator.results.quantities import percent

if TYPE_CHECKING:
    from rich.table import Table

INSPECT_WIDTH = 100
"""Most columns of what job=inspect prints."""
_NAME = 24
_COUPLED = 18
"""Most characters of a group's name, and of the layers that are cut with it."""


def shortened(name: str, length: int) -> str:
    """A path of a module in few characters, its end the last to go.

    Parts from the left on keep their first letter and their digits; where that is not enough, dots
    stand for the middle.
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= length:
            break
        parts[index] = part[:1] + re.sub(r"\D", "", part[1:])
    short = ".".join(parts)
    if len(short) <= length:
        return short
    head = (length - 3) // 2
    tail = length - 3 - head
    return f"{short[:head]}...{short[-tail:]}"


def groups_table(model: str, structure: Structure, free: Mapping[str, float] | None) -> Table:
    """One line per group, with the shares of the MACs and parameters that all its units carry.

    `free` is the share of units that the others can stand in for, by group, where it is known.
    """
    from rich.table import Table

    title = f"{model}: groups of units that live and die together"
    table = Table(title=title, title_justify="left")
    headers = ["group", "units", "kind", "MACs", "params", "cut with"]
    if free is not None:
        headers.insert(-1, "free")
    for header in headers:
        left = header in ("group", "kind", "cut with")
        table.add_column(header, justify="left" if left else "right", no_wrap=True)
    shares = carried(structure)
    for group, (macs, params) in zip(structure.groups, shares, strict=True):
        cells = [
            shortened(group.name, _NAME),
            str(group.size),
            group.kind,
            percent(macs),
            percent(params),
            _listed(coupled(group, structure)),
        ]
        if free is not None:
            known = free.get(group.name)
            cells.insert(-1, "" if known is None else percent(known))
        table.add_row(*cells)
    return table


def carried(structure: Structure) -> list[tuple[float, float]]:
    """For each group the shares of the dense MACs and parameters that go with all its units.

    Layers lie between two groups, so the shares of all groups add up to more than 1.
    """
    cost = Cost(structure)
    dense = structure.sizes
    shares = []
    for index in range(len(structure.groups)):
        counts = structure.sizes
        counts[index] = 0
        macs = 1.0 - cost.macs(counts) / cost.macs(dense)
        shares.append((macs, 1.0 - cost.params(counts) / cost.params(dense)))
    return shares


def coupled(group: Group, structure: Structure) -> list[str]:
    """The layers, beside the one that names the group, whose outputs are its units."""
    # norms have the units too, and make none
    multiplied = {product.tensor for product in structure.macs}
    makers: dict[str, None] = {}
    for member in group.members:
        if member.role == "out" and member.tensor in multiplied:
            makers[_layer(member.tensor)] = None
    makers.pop(group.name, None)
    return list(makers)


def not_prunable(structure: Structure) -> list[tuple[str, str]]:
    """Each reason for which something stays whole, with the names."""
    whole = [Skipped(name, reason) for name, reason in structure.whole.items()]
    by_reason: dict[str, list[str]] = {}
    for skipped in (*structure.skipped, *whole):
        by_reason.setdefault(skipped.reason, []).append(skipped.name)
    return [("not prunable", f"{why}: {', '.join(names)}") for why, names in by_reason.items()]


def inexact(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """A line on the groups in which a mask of zeros is not the same as removal."""
    names = [group.name for group in groups if not group.mask_exact]
    if not names:
        return []
    why = "a mean or softmax over the units stands between, so that zeros count where units do not"
    return [("removed is not masked", f"{', '.join(names)}: {why}")]


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _listed(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    if not names:
        return ""
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return shortened(names[0], _COUPLED - len(more)) + more
