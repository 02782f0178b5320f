"""What a model's plan asked of each group, what the model keeps, and why the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Requested:
    """Units that a plan asked each group to keep, by the group's name.

    `otherwise` has the reason of each group that keeps another number, empty where it is not known.
    `rounding` is the multiple in which the method keeps units. `undone` says that the guard took
    back the last steps.
    """

    units: Mapping[str, int] = field(default_factory=dict)
    otherwise: Mapping[str, str] = field(default_factory=dict)
    rounding: int = 1
    undone: bool = False


@dataclass(frozen=True)
class _Group:
    """Counts of one group's units: of the dense model, by the plan's thresholds, by the plan."""

    size: int
    levels: Sequence[float]
    planned: int
    left: int

    @property
    def asked(self) -> int:
        """By the first threshold; a search for allocations may have set others after it."""
        return max(0, self.size - round(self.levels[0] * self.size))


@dataclass(frozen=True)
class _Maker:
    """What carried the plan out: a method's rounding and scope, and whether there was a guard."""

    rounding: int
    together: bool
    guarded: bool


def requested(
    document: Mapping[str, Any], sizes: Mapping[str, int], left: Mapping[str, int]
) -> Requested | None:
    """What the plan in plan.json asked of its groups, where it asked for numbers of units.

    `sizes` are the units of the dense groups, `left` those that the model has. None where the plan
    does not say it: that of a baseline, or thresholds on the scores themselves.
    """
    plan = document.get("plan", {})
    records = plan.get("asked", ())
    maker = _maker(document)
    if maker is None or not records or records[0]["rule"] != "quantile":
        return None
    groups = {}
    for name, size in sizes.items():
        levels = [record["levels"][name] for record in records if name in record["levels"]]
        if levels:
            groups[name] = _Group(size, levels, plan["kept"].get(name, size), left[name])
    if not groups:
        return None
    units = {name: group.asked for name, group in groups.items()}
    otherwise = {}
    for name, group in groups.items():
        if group.left != group.asked:
            otherwise[name] = _reason(group, maker)
    undone = maker.guarded and any([group.left > group.planned for group in groups.values()])
    return Requested(units, otherwise, maker.rounding, undone)


def _maker(document: Mapping[str, Any]) -> _Maker | None:
    lineage = document.get("lineage", {})
    if not lineage.get("links"):
        return None
    method = lineage["methods"][lineage["links"][-1]["method"]]
    guard = lineage["recipe"].get("phases", {}).get("finetune", {}).get("guard")
    return _Maker(method["round_to"] or 1, method["scope"] != "local", guard is not None)


def _reason(group: _Group, maker: _Maker) -> str:
    """Why a group keeps another number of units than was asked; the last thing that moved it."""
    if group.left == 0:
        return "its whole block is gone"
    if group.left > group.planned:
        return "the guard took back the last steps" if maker.guarded else ""
    if group.left < group.planned:
        return ""
    if len(group.levels) > 1:
        return "a search for allocations shared the units out anew"
    if group.planned == min(-(-group.asked // maker.rounding) * maker.rounding, group.size):
        return f"rounded up to a multiple of {maker.rounding}"
    if group.asked == 0:
        return "no group is emptied"
    if maker.together:
        return "its units were ranked together with those of other groups"
    return ""
