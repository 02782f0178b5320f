"""The picture of a study: quality against the first of its costs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.files import write_atomic
from orchestrator.results.quantities import axis_words, cost_words
from orchestrator.results.rows import ConfirmedRow, Rows, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito: told apart also by colour-blind readers; marker shapes say the same once more for
# grey prints.
_FRONT = "#0072B2"
_DENSE = "#000000"
_TRIAL = "#7F7F7F"
_BASELINES = (
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
)
_BELOW_SPAN = 0.35
"""Room below the confirmed models for trials and baselines, as a share of their span of quality."""
_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Ratios of the cost that the axis may name."""


def pareto(path: str | Path, rows: Rows, *, quality: str, title: str, sign: float = 1.0) -> None:
    """Writes a PNG: front and baselines on test data (mean and standard deviation), trials on
    validation data.

    `quality` is the metric's name, up is better: with `sign` -1 its axis falls. Points worse than
    the part that matters sit on the lower edge as arrows.
    """
    # Heavy, and not wanted before there is something to draw. Figure, not pyplot: no window system,
    # no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(9.0, 6.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    upright = _upright(rows, sign)
    floor, top = _quality_limits(upright)
    _draw_trials(axes, upright.trials, floor)
    _draw_baselines(axes, upright.baselines, floor)
    _draw_front(axes, upright.front)
    if upright.dense is not None:
        _draw_dense(axes, upright.dense)
    axes.set_ylim(floor, top)
    _dress(axes, upright, quality, title)
    if sign < 0.0:
        axes.yaxis.set_major_formatter(lambda value, _: f"{sign * value + 0.0:g}")
        axes.set_ylabel(f"{quality} (less is better)")
    _legend(figure, axes)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_atomic(path, picture.getvalue())


def _upright(rows: Rows, sign: float) -> Rows:
    """With qualities of which more is better, and without trials that have no place in the
    picture.
    """
    trials = []
    for row in rows.trials:
        if row.quality is not None and math.isfinite(row.quality) and row.cost_ratio:
            trials.append(replace(row, quality=sign * row.quality))

    def turned(row: ConfirmedRow) -> ConfirmedRow:
        return replace(row, test_mean=sign * row.test_mean)

    return Rows(
        trials,
        [turned(row) for row in rows.front],
        [turned(row) for row in rows.baselines],
        None if rows.dense is None else turned(rows.dense),
    )


def _quality_limits(rows: Rows) -> tuple[float, float]:
    """The axis follows the confirmed models: one trial at chance level must not flatten the
    rest.
    """
    confirmed = [*rows.front, *([rows.dense] if rows.dense else [])]
    low = [row.test_mean - row.test_std for row in confirmed]
    high = [row.test_mean + row.test_std for row in confirmed]
    others = [row.quality for row in rows.trials if row.quality is not None]
    others += [row.test_mean for row in rows.baselines]
    if not confirmed:
        low, high = others or [0.0], others or [1.0]
    span = max(max(high) - min(low), 0.02 * abs(max(high)), 1e-6)
    bottom = max(min([*low, *others]), min(low) - _BELOW_SPAN * span)
    near = [value for value in others if value < max(high) + _BELOW_SPAN * span]
    top = max([*high, *near])
    return bottom - 0.07 * span, top + 0.10 * span


def _draw_trials(axes: Axes, trials: Sequence[TrialRow], floor: float) -> None:
    shown = [row for row in trials if row.quality is not None and row.quality >= floor]
    finished = [row for row in shown if row.state == "completed"]
    stopped = [row for row in shown if row.state != "completed"]
    for rows, face, label in (
        (finished, _TRIAL, "trials, completed"),
        (stopped, "none", "trials, stopped early"),
    ):
        if rows:
            axes.scatter(
                [row.cost_ratio or math.nan for row in rows],
                [row.quality or 0.0 for row in rows],
                s=20,
                facecolors=face,
                edgecolors=_TRIAL,
                linewidths=0.9,
                alpha=0.55,
                label=f"{label} (validation)",
                zorder=2,
            )
    below = [
        row.cost_ratio or math.nan
        for row in trials
        if row.quality is not None and row.quality < floor
    ]
    _draw_below(axes, below, _TRIAL)


def _draw_baselines(axes: Axes, baselines: Sequence[ConfirmedRow], floor: float) -> None:
    for index, name in enumerate(dict.fromkeys(row.origin for row in baselines)):
        colour, marker = _BASELINES[index % len(_BASELINES)]
        rows = sorted(
            (row for row in baselines if row.origin == name), key=lambda row: row.cost_ratio
        )
        axes.errorbar(
            [row.cost_ratio for row in rows],
            [row.test_mean for row in rows],
            yerr=[row.test_std for row in rows],
            color=colour,
            marker=marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle=(0, (2, 2)),
            linewidth=1.0,
            elinewidth=1.0,
            capsize=2.5,
            label=f"{name} baseline (test data)",
            zorder=3,
        )
        _draw_below(axes, [row.cost_ratio for row in rows if row.test_mean < floor], colour)


def _draw_below(axes: Axes, flops_ratios: Sequence[float], colour: str) -> None:
    if flops_ratios:
        edge = axes.get_xaxis_transform()  # x in data, y in parts of the axis
        axes.scatter(
            flops_ratios,
            [0.015] * len(flops_ratios),
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
    seeds = sorted({row.seeds for row in rows})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
    axes.errorbar(
        [row.cost_ratio for row in rows],
        [row.test_mean for row in rows],
        yerr=[row.test_std for row in rows],
        color=_FRONT,
        marker="o",
        markersize=7.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linewidth=2.0,
        elinewidth=1.4,
        capsize=3.5,
        label=f"front (test data, {counted} seeds)",
        zorder=5,
    )
    if len({row.method for row in rows}) > 1:
        for turn, row in enumerate(rows):  # above and below in turn: neighbours stand close
            place, offset = (row.cost_ratio, row.test_mean), (0, 9 if turn % 2 else -16)
            axes.annotate(
                row.method,
                place,
                offset,
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_FRONT,
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
    lowest, highest = min([*ratios, 0.5]), max([*ratios, 1.0])
    left = lowest / 1.25
    axes.set_xscale("log")
    axes.set_xlim(left, max(1.15, 1.05 * highest))  # a measured cost may be above the dense one
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if tick >= left]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis, dense = rows.axis, rows.dense
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
    order = sorted(
        range(len(labels)),
        key=lambda i: (not labels[i].startswith("front"), labels[i].startswith("trials")),
    )
    if order:
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside lower center",
            ncols=3,
            fontsize=8.5,
            frameon=False,
        )
