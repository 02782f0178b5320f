"""The picture of a study: quality against the first of its costs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.files import write_atomic
from orchestrator.report.colours import BASELINE_COLOURS, FRONT_COLOUR, TRIAL
from orchestrator.report.limits import quality_limits, upright
from orchestrator.results.quantities import axis_words, cost_words
from orchestrator.results.rows import ConfirmedRow, Rows, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DENSE = "#000000"
_MARKERS = ("s", "^", "D", "v", "P")
_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Ratios of the cost that the axis may name."""


def pareto(path: str | Path, rows: Rows, *, quality: str, title: str, sign: float = 1.0) -> None:
    """Writes the picture of `png` to a file."""
    write_atomic(path, png(rows, quality=quality, title=title, sign=sign))


def png(rows: Rows, *, quality: str, title: str, sign: float = 1.0) -> bytes:
    """A PNG: front and baselines on test data, trials on validation data.

    Test data is shown by mean and standard deviation. `quality` is the metric's name, up is better:
    with `sign` -1 its axis falls. Points worse than the part that matters sit on the lower edge as
    arrows.
    """
    # Imported here: heavy, and not wanted before there is something to draw. Figure, not pyplot:
    # no window system, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(9.0, 6.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = upright(rows, sign)
    floor, top = quality_limits(drawn)
    _draw_trials(axes, drawn.trials, floor)
    _draw_baselines(axes, drawn.baselines, floor)
    _draw_front(axes, drawn.front)
    if drawn.dense is not None:
        _draw_dense(axes, drawn.dense)
    axes.set_ylim(floor, top)
    _dress(axes, drawn, quality, title)
    if sign < 0.0:
        axes.yaxis.set_major_formatter(lambda value, _: f"{sign * value + 0.0:g}")
        axes.set_ylabel(f"{quality} (less is better)")
    _legend(figure, axes)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _draw_trials(axes: Axes, trials: Sequence[TrialRow], floor: float) -> None:
    finished = []
    stopped = []
    below = []
    for row in trials:
        if row.quality is None:
            continue
        if row.quality < floor:
            below.append(row.cost_ratio or math.nan)
        elif row.state == "completed":
            finished.append(row)
        else:
            stopped.append(row)
    _scatter_trials(axes, finished, TRIAL, "trials, completed (validation)")
    _scatter_trials(axes, stopped, "none", "trials, stopped early (validation)")
    _draw_below(axes, below, TRIAL)


def _scatter_trials(axes: Axes, rows: Sequence[TrialRow], face: str, label: str) -> None:
    if not rows:
        return
    axes.scatter(
        [row.cost_ratio or math.nan for row in rows],
        [row.quality or 0.0 for row in rows],
        s=20,
        facecolors=face,
        edgecolors=TRIAL,
        linewidths=0.9,
        alpha=0.55,
        label=label,
        zorder=2,
    )


def _draw_baselines(axes: Axes, baselines: Sequence[ConfirmedRow], floor: float) -> None:
    ladders: dict[str, list[ConfirmedRow]] = {}
    for row in baselines:
        ladders.setdefault(row.origin, []).append(row)
    for index, (name, ladder) in enumerate(ladders.items()):
        colour = BASELINE_COLOURS[index % len(BASELINE_COLOURS)]
        marker = _MARKERS[index % len(_MARKERS)]
        rows = sorted(ladder, key=lambda row: row.cost_ratio)
        _draw_means(
            axes,
            rows,
            color=colour,
            marker=marker,
            markersize=6,
            markeredgewidth=0.6,
            linestyle=(0, (2, 2)),
            linewidth=1.0,
            elinewidth=1.0,
            capsize=2.5,
            label=f"{name} baseline (test data)",
            zorder=3,
        )
        _draw_below(axes, [row.cost_ratio for row in rows if row.test_mean < floor], colour)


def _draw_means(axes: Axes, rows: Sequence[ConfirmedRow], **look: Any) -> None:
    """Means over the cost, with bars of one standard deviation."""
    axes.errorbar(
        [row.cost_ratio for row in rows],
        [row.test_mean for row in rows],
        yerr=[row.test_std for row in rows],
        markeredgecolor="white",
        **look,
    )


def _draw_below(axes: Axes, cost_ratios: Sequence[float], colour: str) -> None:
    if cost_ratios:
        # x is in data, y in parts of the axis
        edge = axes.get_xaxis_transform()
        axes.scatter(
            cost_ratios,
            [0.015] * len(cost_ratios),
            marker="v",
            s=22,
            color=colour,
            transform=edge,
            zorder=4,
        )


def _draw_front(axes: Axes, front: Sequence[ConfirmedRow]) -> None:
    if not front:
        return
    rows = sorted(front, key=lambda row: row.cost_ratio)
    seeds = [row.seeds for row in rows]
    least = min(seeds)
    most = max(seeds)
    counted = f"{least}" if least == most else f"{least}-{most}"
    _draw_means(
        axes,
        rows,
        color=FRONT_COLOUR,
        marker="o",
        markersize=7.5,
        markeredgewidth=0.8,
        linewidth=2.0,
        elinewidth=1.4,
        capsize=3.5,
        label=f"front (test data, {counted} seeds)",
        zorder=5,
    )
    methods = {row.method for row in rows}
    if len(methods) > 1:
        _name_methods(axes, rows)


def _name_methods(axes: Axes, rows: Sequence[ConfirmedRow]) -> None:
    """The method beside each model: above and below in turn, as neighbours stand close."""
    for turn, row in enumerate(rows):
        offset = (0, 9 if turn % 2 else -16)
        axes.annotate(
            row.method,
            (row.cost_ratio, row.test_mean),
            offset,
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=FRONT_COLOUR,
        )


def _draw_dense(axes: Axes, dense: ConfirmedRow) -> None:
    axes.axhline(
        dense.test_mean, color=_DENSE, linewidth=0.9, linestyle=(0, (6, 3)), alpha=0.7, zorder=1
    )
    axes.errorbar(
        [dense.cost_ratio],
        [dense.test_mean],
        yerr=[dense.test_std],
        color=_DENSE,
        marker="*",
        markersize=14,
        linestyle="none",
        capsize=3.5,
        label="dense model (test data)",
        zorder=6,
    )


def _dress(axes: Axes, rows: Rows, quality: str, title: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ratios = [row.cost_ratio for row in (*rows.front, *rows.baselines, *rows.trials)]
    lowest = min([*ratios, 0.5])
    highest = max([*ratios, 1.0])
    left = lowest / 1.25
    axes.set_xscale("log")
    # a measured cost may be above the dense one
    axes.set_xlim(left, max(1.15, 1.05 * highest))
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if tick >= left]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis = rows.axis
    dense = rows.dense
    whole = "" if dense is None else f"; 100 % = {cost_words(axis, dense.cost)}"
    axes.set_xlabel(f"{axis_words(axis)} left, share of the dense model (log scale{whole})")
    axes.set_ylabel(quality)
    axes.set_title(title, loc="left", fontsize=12)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, axes: Axes) -> None:
    """Under the axes, where it covers no point; the front first, the trials last."""
    handles, labels = axes.get_legend_handles_labels()

    def order(entry: tuple[Any, str]) -> tuple[bool, bool]:
        _, label = entry
        return (not label.startswith("front"), label.startswith("trials"))

    ordered = sorted(zip(handles, labels, strict=True), key=order)
    if ordered:
        figure.legend(
            *zip(*ordered, strict=True),
            loc="outside lower center",
            ncols=3,
            fontsize=8.5,
            frameon=False,
        )
