"""The live display's parts: the study's bar, the workers, and the front as a small text plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.results.quantities import axis_words, percent
from orchestrator.results.rows import TrialRow

if TYPE_CHECKING:
    from rich.console import RenderableType

PLOT_WIDTH = 60
PLOT_HEIGHT = 7
"""Columns and lines of the plot itself; its labels need nine more columns and three more lines."""
_WORKER_LINES = 8
"""Most workers that are listed."""
_MARGIN = 9


@dataclass(frozen=True)
class Goal:
    """Of which model the display speaks: the best one up to `most` of the dense model's cost.

    With `sign` -1 a small quality is good.
    """

    most: float = 0.5
    sign: float = 1.0


def study_bar(done: int, total: int, facts: Sequence[str]) -> RenderableType:
    """How many of all trials have ended, and the `facts`."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=max(1, total), completed=min(done, total), width=30),
        Text(", ".join(facts)),
    )
    return bar


def worker_lines(workers: Sequence[str]) -> list[str]:
    """One line for each of the first workers, and one that counts the others."""
    lines = list(workers[:_WORKER_LINES])
    if len(workers) > _WORKER_LINES:
        lines.append(f"and {len(workers) - _WORKER_LINES} more")
    return lines


def front_lines(front: Sequence[TrialRow], others: Sequence[TrialRow], goal: Goal) -> list[str]:
    """The front so far in plain characters: quality over the logarithm of the cost.

    Members of the front are `o`, `others` are dots. The last line names the best model for the
    `goal`. There is nothing to show before a trial has both a quality and a cost.
    """
    members = [row for row in front if _has_place(row)]
    if not members:
        return []
    words = axis_words(members[0].axis)
    dots = [row for row in others if _has_place(row)]
    title = f"validation front so far: quality over {words} (o), other trials (.)"
    return [title, *sketch(_places(members), _places(dots)), _best(members, goal, words)]


def _has_place(row: TrialRow) -> bool:
    return row.quality is not None and math.isfinite(row.quality) and row.cost_ratio > 0.0


def _places(rows: Sequence[TrialRow]) -> list[tuple[float, float]]:
    return [(row.cost_ratio, row.quality) for row in rows if row.quality is not None]


def sketch(
    members: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]
) -> list[str]:
    """Lines of a plot of (ratio, quality), ratios on a logarithmic axis; there is a member."""
    places = [*others, *members]
    xs = [math.log(ratio) for ratio, _ in places]
    ys = [quality for _, quality in places]
    canvas = [[" "] * PLOT_WIDTH for _ in range(PLOT_HEIGHT)]
    # members come last, and so stand before the others
    for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
        column = _step(x, min(xs), max(xs), PLOT_WIDTH)
        line = PLOT_HEIGHT - 1 - _step(y, min(ys), max(ys), PLOT_HEIGHT)
        canvas[line][column] = "." if index < len(others) else "o"
    lines = [f"{'':{_MARGIN - 1}}|{''.join(row).rstrip()}" for row in canvas]
    lines[0] = f"{max(ys):{_MARGIN - 2}.4f} {lines[0][_MARGIN - 1 :]}"
    if max(ys) > min(ys):
        lines[-1] = f"{min(ys):{_MARGIN - 2}.4f} {lines[-1][_MARGIN - 1 :]}"
    return [*lines, f"{'':{_MARGIN - 1}}+{'-' * PLOT_WIDTH}", _cost_labels(xs)]


def _cost_labels(xs: Sequence[float]) -> str:
    """The ends and the middle of the logarithmic axis."""
    low, high = min(xs), max(xs)
    if low == high:
        return f"{'':{_MARGIN}}{percent(math.exp(low)):^{PLOT_WIDTH}}".rstrip()
    ends = [percent(math.exp(x)) for x in (low, (low + high) / 2, high)]
    third = PLOT_WIDTH // 3
    return f"{'':{_MARGIN}}{ends[0]:<{third}}{ends[1]:^{third}}{ends[2]:>{third}}"


def _step(value: float, low: float, high: float, steps: int) -> int:
    """On which of `steps` places a value stands; in the middle where there is one value alone."""
    if high <= low:
        return steps // 2
    return round((value - low) / (high - low) * (steps - 1))


def _best(front: Sequence[TrialRow], goal: Goal, words: str) -> str:
    aim = f"{percent(goal.most)} of the {words}"
    best: TrialRow | None = None
    for row in front:
        if row.cost_ratio > goal.most:
            continue
        if best is None or goal.sign * (row.quality or 0.0) > goal.sign * (best.quality or 0.0):
            best = row
    if best is None:
        return f"no model at or under {aim} yet"
    where = f"quality {best.quality:.4f} at {percent(best.cost_ratio)}"
    return f"best up to {aim}: trial {best.number}, {where}"
