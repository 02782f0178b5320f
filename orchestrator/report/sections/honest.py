"""Whether the front can be trusted: baselines, rungs, time, failures, environment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.report.sections.parts import Line, PageTable, Section
from orchestrator.report.sections.volume import volume_parts
from orchestrator.report.view import StudyView
from orchestrator.results.quantities import duration, mean_and_spread, percent
from orchestrator.results.rows import ConfirmedRow


def honest_section(view: StudyView) -> Section:
    """Tables of what speaks for the front and against it."""
    explanation = (
        "A front is worth something where it is ahead of plain methods at the same cost by more "
        "than chance: a difference below one pooled spread says nothing. Rungs say how far a "
        "trial's early results foretold its last."
    )
    makers = (_baselines, _rungs, _states, _failures, _times, _environment)
    baselines, *tables = [make(view) for make in makers]
    parts = [baselines, *volume_parts(view), *tables, _command(view)]
    return Section("Is it honest", explanation, [part for part in parts if part is not None])


def _command(view: StudyView) -> Line:
    again = (
        "All settings stand in config.yaml beside this page. The same command given again "
        "continues the study; under another study.name it repeats it."
    )
    command = view.summary.get("command", "")
    return Line(f"{again} It was:" if command else again, command=command)


def _baselines(view: StudyView) -> PageTable | None:
    """Each model of a baseline against the front's model of the nearest cost."""
    front = [row for row in view.rows.front if row.cost_ratio > 0.0]
    rivals = [row for row in view.rows.baselines if row.cost_ratio > 0.0]
    if not front or not rivals:
        return None
    cells = []
    for rival in sorted(rivals, key=lambda row: (row.origin, -row.cost_ratio)):
        cells.append(_compared(view, rival, _nearest(front, rival)))
    header = [
        "baseline",
        "cost",
        view.quality,
        "front's nearest",
        view.quality,
        "difference",
        "in spreads",
        "ahead",
    ]
    caption = (
        "The baselines, each against the front's model of nearest cost; a difference above zero is "
        "for the front, and counted in pooled spreads"
    )
    return PageTable(caption, header, cells)


def _nearest(front: Sequence[ConfirmedRow], rival: ConfirmedRow) -> ConfirmedRow:
    """The front's model whose cost is nearest, in octaves."""
    return min(front, key=lambda row: abs(math.log(row.cost_ratio / rival.cost_ratio)))


def pooled_spreads(view: StudyView, row: ConfirmedRow, rival: ConfirmedRow) -> float | None:
    """By how many pooled standard deviations `row` is ahead; None where neither spreads."""
    pooled = math.sqrt((row.test_std**2 + rival.test_std**2) / 2)
    if pooled == 0.0:
        return None
    return view.sign * (row.test_mean - rival.test_mean) / pooled


def _compared(view: StudyView, rival: ConfirmedRow, row: ConfirmedRow) -> list[str]:
    spreads = pooled_spreads(view, row, rival)
    ahead = view.sign * (row.test_mean - rival.test_mean)
    if row.name == rival.name:
        who = "it is on the front"
    elif ahead == 0.0 or (spreads is not None and abs(spreads) < 1.0):
        who = "neither"
    else:
        who = "the front" if ahead > 0.0 else "the baseline"
    return [
        rival.origin,
        percent(rival.cost_ratio),
        mean_and_spread(rival.test_mean, rival.test_std),
        f"{row.words}, {percent(row.cost_ratio)}",
        mean_and_spread(row.test_mean, row.test_std),
        f"{ahead:+.4f}",
        "no spread" if spreads is None else f"{round(spreads, 1) + 0.0:+.1f}",
        who,
    ]


def _rungs(view: StudyView) -> PageTable | None:
    if not view.rungs:
        return None
    cells = []
    for row in view.rungs:
        values = (row.loss, row.loss_at_cost, row.quality, row.quality_at_cost)
        shown = ["not known" if value is None else f"{value:.2f}" for value in values]
        cells.append([str(row.rung), str(row.trials), *shown])
    header = ["rung", "trials", "loss", "at equal FLOPs", view.quality, "at equal FLOPs"]
    caption = "Rank correlation of the results at a rung with the quality in the end; 1: same order"
    return PageTable(caption, header, cells)


def _states(view: StudyView) -> PageTable | None:
    if not view.rows.trials:
        return None
    counts: dict[str, int] = {}
    for row in view.rows.trials:
        counts[row.state] = counts.get(row.state, 0) + 1
    cells = [[state, str(count)] for state, count in counts.items()]
    return PageTable("The trials by how they ended", ["state", "trials"], cells)


def _failures(view: StudyView) -> PageTable | None:
    """Why trials did not complete, the most common reason first; then failed confirmations."""
    trials: dict[tuple[str, str], list[str]] = {}
    for row in view.rows.trials:
        if row.reason:
            trials.setdefault((row.state, row.reason), []).append(str(row.number))
    cells = []
    for (state, reason), numbers in sorted(trials.items(), key=lambda item: -len(item[1])):
        cells.append([state, str(len(numbers)), reason, ", ".join(numbers)])
    for name, reason in view.summary.get("failed", {}).items():
        cells.append(["not confirmed", "1", str(reason), str(name)])
    if not cells:
        return None
    header = ["state", "how often", "reason", "trials"]
    return PageTable("What did not complete, and why", header, cells, folded=len(cells) > 10)


def _times(view: StudyView) -> PageTable | None:
    phases = view.summary.get("phases", {})
    total = view.summary.get("seconds", 0.0)
    if not phases or not total:
        return None
    cells = []
    for name, seconds in phases.items():
        cells.append([name, duration(seconds), percent(seconds / total)])
    cells.append(["all", duration(total), percent(1.0)])
    caption = "Where the time of the last run went; workers may add up to more than all"
    return PageTable(caption, ["phase", "time", "share"], cells)


def _environment(view: StudyView) -> PageTable | None:
    environment = view.summary.get("environment", {})
    if not environment:
        return None
    cells = [[name, str(value)] for name, value in environment.items()]
    return PageTable("The environment of the last run", ["what", "version"], cells)
