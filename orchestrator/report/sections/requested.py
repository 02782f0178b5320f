"""What was asked of each model, and what it has: as text beside the map of what was pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.report.sections.parts import Line, PageTable, SectionPart
from orchestrator.report.view import StudyView
from orchestrator.results.quantities import axis_words, percent
from orchestrator.results.requested import Requested
from orchestrator.results.rows import FRONT_ORIGIN, ConfirmedRow
from orchestrator.settings.targets import FLOPS_TARGET, LATENCY_TARGET

_TARGETS = {FLOPS_TARGET: "flops", LATENCY_TARGET: "estimated_latency_ms"}
"""The decision that asks for a share of the dense model's cost, where units are removed."""
_UNKNOWN = "the study does not say why"


def requested_parts(view: StudyView, models: Sequence[str]) -> list[SectionPart]:
    """A table of the models' targets, and one of the groups that keep other numbers of units.

    `models` are names of the front's models. There is nothing where no plan says what it asked for.
    """
    known = [name for name in models if name in view.requested]
    if not known:
        return []
    parts: list[SectionPart] = [_models_table(view, known)]
    if any([view.requested[name].otherwise for name in known]):
        parts.append(_groups_table(view, known))
    else:
        parts.append(Line("Every group of these models keeps as many units as were asked for."))
    return parts


def _models_table(view: StudyView, models: Sequence[str]) -> PageTable:
    rows = {row.name: row for row in view.rows.front}
    decision = _decision(view)
    cost = _TARGETS[decision]
    words = axis_words(cost)
    targets = {name: _target(view, rows[name], decision) for name in models}
    header = ["model", f"{words} reached", "groups otherwise", "why"]
    # a space of thresholds has no targets
    if any([target is not None for target in targets.values()]):
        header.insert(1, f"{words} asked for")
    cells = []
    for name, target in targets.items():
        requested = view.requested[name]
        reached = rows[name].ratios.get(cost, 0.0)
        line = [
            rows[name].words,
            percent(reached),
            f"{len(requested.otherwise)} of {len(requested.units)}",
            _why(requested, target, reached),
        ]
        if len(header) > len(line):
            line.insert(1, "" if target is None else percent(target))
        cells.append(line)
    return PageTable("Asked for and reached", header, cells, models)


def _decision(view: StudyView) -> str:
    """The decision by which this study's plans ask for a share of a cost."""
    for decided in view.decisions.trials.values():
        if LATENCY_TARGET in decided:
            return LATENCY_TARGET
    return FLOPS_TARGET


def _target(view: StudyView, row: ConfirmedRow, decision: str) -> float | None:
    """The share of the cost that the trial's plan was made for; None where there was none."""
    if row.origin != FRONT_ORIGIN or row.trial is None:
        return None
    target = view.decisions.trials.get(row.trial, {}).get(decision)
    return None if target is None else float(target)


def _why(requested: Requested, target: float | None, reached: float) -> str:
    """Why a model is not exactly at its target, then the reasons of its groups, most first."""
    reasons = []
    if target is not None and reached <= target and not requested.undone:
        whole = "whole units"
        if requested.rounding > 1:
            whole = f"multiples of {requested.rounding} units"
        reasons.append(f"the most {whole} within the target")
    groups = Counter([reason or _UNKNOWN for reason in requested.otherwise.values()])
    for reason, count in groups.most_common():
        reasons.append(f"{count} {'group' if count == 1 else 'groups'}: {reason}")
    return "; ".join(reasons)


def _groups_table(view: StudyView, models: Sequence[str]) -> PageTable:
    """Groups that keep another number of units in some model, in the order of the network."""
    rows = {row.name: row for row in view.rows.front}
    header = ["group", *[rows[name].words for name in models], "why"]
    cells = []
    for group in view.network.groups:
        reasons: dict[str, None] = {}
        line = [group.name]
        for name in models:
            requested = view.requested[name]
            left = round(view.kept[name][group.name] * group.units)
            if group.name not in requested.otherwise:
                line.append(str(left))
                continue
            line.append(f"{requested.units[group.name]} → {left}")
            reasons[requested.otherwise[group.name] or _UNKNOWN] = None
        if reasons:
            cells.append([*line, "; ".join(reasons)])
    caption = "Units asked for → units kept, where they differ"
    return PageTable(caption, header, cells, folded=True)
