"""The view of a study that its page shows, put together from the files in its folder.

What the page has to know of the network is kept in groups.json, so that it is made anew without
the network, and while the study runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.files import write_atomic
from orchestrator.report.view import GroupFacts, Network, StudyView
from orchestrator.results.decisions import Decisions, Importance
from orchestrator.results.error_curves import ErrorCurves
from orchestrator.results.requested import Requested, requested
from orchestrator.results.rows import FRONT_ORIGIN, ConfirmedRow, Rows, RungRow
from orchestrator.results.who_pays import SeedResults
from orchestrator.search.plans.names import PLAN, RECORDS
from orchestrator.settings import Settings
from orchestrator.stored import read_cache

if TYPE_CHECKING:
    from lightning_modules.pruning.structure import Group, Structure
    from orchestrator.search.lab.facts import Facts

GROUPS = "groups.json"
DECISIONS = "decisions.json"
ERRORS = "errors.json"


@dataclass(frozen=True)
class Known:
    """The content of groups.json: the quality with its sign, the costs, and the network.

    `signs` are those of all metrics of the task, `begun` is what summary.json will have that is
    known from the beginning.
    """

    quality: str
    sign: float
    costs: tuple[str, ...]
    network: Network
    signs: Mapping[str, float] = field(default_factory=dict)
    begun: Mapping[str, Any] = field(default_factory=dict)


def write_known(settings: Settings, facts: Facts, begun: Mapping[str, Any]) -> None:
    """Writes groups.json at the beginning of a search. Errors: StorageError."""
    # showing a finished study does not need it
    from orchestrator.search.directions import task_directions

    goals = facts.goals
    ways = task_directions(settings)
    structure = facts.structure
    skipped = {layer.name: layer.reason for layer in structure.skipped}
    skipped.update(structure.whole)
    content = {
        "quality": goals.quality,
        "sign": goals.sign,
        "costs": list(goals.costs),
        "groups": [asdict(group) for group in _groups(facts)],
        "skipped": skipped,
        "before": groups_before(structure, list(skipped)),
        "begun": dict(begun),
        "signs": {name: 1.0 if way == "maximize" else -1.0 for name, way in ways.items()},
    }
    write_atomic(settings.study.folder / GROUPS, json.dumps(content, indent=1))


def _groups(facts: Facts) -> list[GroupFacts]:
    """The groups in network order, each with the share of the MACs that go with it."""
    groups = []
    for index, group in enumerate(facts.structure.groups):
        counts = facts.structure.sizes
        counts[index] = 0
        share = 1.0 - facts.cost.macs(counts) / facts.dense_macs
        block = _block_of(group, facts.structure)
        groups.append(GroupFacts(group.name, group.kind, group.size, share, block))
    return groups


def groups_before(structure: Structure, names: Sequence[str]) -> dict[str, int]:
    """How many groups stand before each of these layers in the network.

    Layers that multiply with nothing have no place. Whole blocks stand behind all other groups.
    """
    tensors = [product.tensor for product in structure.macs]

    def place(name: str) -> int | None:
        inside = (at for at, tensor in enumerate(tensors) if tensor.startswith(f"{name}."))
        return next(inside, None)

    groups = [place(group.name) for group in structure.groups if group.kind != "block"]
    before = {}
    for name in names:
        at = place(name)
        if at is not None:
            before[name] = sum(other is not None and other < at for other in groups)
    return before


def _block_of(group: Group, structure: Structure) -> str:
    """The block with all members of a group, which is gone where the block is; "" for none."""
    if not group.members:
        return ""
    for block in structure.groups:
        inside = [member.tensor.startswith(f"{block.name}.") for member in group.members]
        if block.kind == "block" and all(inside):
            return block.name
    return ""


def read_known(folder: Path) -> Known | None:
    """What groups.json says; None where there is none, as in a study of an earlier version."""
    return read_cache(folder / GROUPS, _parsed)


def _parsed(data: Mapping[str, Any]) -> Known:
    groups = [GroupFacts(**group) for group in data["groups"]]
    network = Network(groups, dict(data["skipped"]), dict(data.get("before", {})))
    quality = data["quality"]
    signs = {name: float(sign) for name, sign in data.get("signs", {}).items()}
    begun = dict(data.get("begun", {}))
    return Known(quality, float(data["sign"]), tuple(data["costs"]), network, signs, begun)


def known_from(settings: Settings) -> Known:
    """The same without the network, as far as the settings say it."""
    # showing a finished study does not need it
    from orchestrator.search.goals import goals_of

    goals = goals_of(settings)
    return Known(goals.quality, goals.sign, goals.costs, Network())


def write_decisions(folder: Path, decisions: Decisions) -> None:
    """Writes decisions.json, which has what the storage knows. Errors: StorageError."""
    write_atomic(folder / DECISIONS, json.dumps(asdict(decisions), separators=(",", ":")))


def _decisions_in(folder: Path) -> Decisions:
    """What decisions.json says; nothing where there is none."""

    def parsed(data: Mapping[str, Any]) -> Decisions:
        trials = {int(number): dict(decided) for number, decided in data["trials"].items()}
        return Decisions(trials, [Importance(**values) for values in data["importance"]])

    return read_cache(folder / DECISIONS, parsed) or Decisions()


def write_errors(folder: Path, curves: ErrorCurves) -> None:
    """Writes errors.json, where the method knows the errors. Errors: StorageError."""
    if curves:
        write_atomic(folder / ERRORS, json.dumps(curves, separators=(",", ":")))


def _errors_in(folder: Path) -> ErrorCurves:
    """What errors.json says; nothing where there is none."""

    def parsed(data: Mapping[str, Any]) -> ErrorCurves:
        curves = {}
        for name, points in data.items():
            curves[name] = [(float(share), float(error)) for share, error in points]
            if len(points) < 2:
                raise ValueError(f"a curve has two points at least; that of '{name}' has not")
        return curves

    return read_cache(folder / ERRORS, parsed) or {}


def view_of(
    folder: Path,
    known: Known,
    rows: Rows,
    rungs: Sequence[RungRow],
    summary: Mapping[str, Any],
    decisions: Decisions | None = None,
) -> StudyView:
    """The study in a folder; the plans of the front's models say what was pruned.

    Decisions that are not given are read from their file.
    """
    pruned = _pruned(folder, rows.front, known.network)
    asked = {name: said.requested for name, said in pruned.items() if said.requested is not None}
    return StudyView(
        name=folder.name,
        quality=known.quality,
        sign=known.sign,
        rows=rows,
        network=known.network,
        kept={name: said.kept for name, said in pruned.items()},
        requested=asked,
        rungs=rungs,
        summary={**known.begun, **summary},
        decisions=_decisions_in(folder) if decisions is None else decisions,
        tested=_tested(folder, rows),
        signs={known.quality: known.sign, **known.signs},
        errors=_errors_in(folder),
    )


def _tested(folder: Path, rows: Rows) -> dict[str, SeedResults]:
    """By name what the records of the confirmation have of the front's models and the dense one."""
    dense = [] if rows.dense is None else [rows.dense]
    found = {}
    for row in [*dense, *rows.front]:
        tested = tested_in(folder, row)
        if tested is not None:
            found[row.name] = tested
    return found


def tested_in(folder: Path, row: ConfirmedRow) -> SeedResults | None:
    """The test results of each seed of a confirmed model; None where there is no record."""

    def parsed(data: Mapping[str, Any]) -> SeedResults:
        return SeedResults(data["test"], data.get("by_class", ()))

    label = f"trial-{row.trial}" if row.origin == FRONT_ORIGIN else row.name
    return read_cache(folder / RECORDS / f"{label}.json", parsed)


@dataclass(frozen=True)
class _Pruned:
    """What the plan of one model says: the shares that are kept, and what was asked for."""

    kept: Mapping[str, float]
    requested: Requested | None


def _pruned(folder: Path, front: Sequence[ConfirmedRow], network: Network) -> dict[str, _Pruned]:
    """What the plans of the front's models say, by their names."""
    found = {}
    for row in front:
        pruned = read_cache(
            folder / "models" / row.name / PLAN, lambda document: _said(document, network)
        )
        if pruned is not None:
            found[row.name] = pruned
    return found


def _said(document: Mapping[str, Any], network: Network) -> _Pruned:
    """What a plan.json says of the groups of this network, and of weight tensors."""
    units = {}
    for name, runs in document["keep"].items():
        units[name] = sum([end - first for first, end in runs])
    left = {}
    for group in network.groups:
        gone = group.block and units.get(group.block, 1) == 0
        # a group that the plan does not name stays whole
        left[group.name] = 0 if gone else units.get(group.name, group.units)
    sizes = {group.name: group.units for group in network.groups}
    kept = {name: left[name] / size for name, size in sizes.items()}
    return _Pruned({**kept, **document["density"]}, requested(document, sizes, left))
