"""What a person sees at the end: the front with its baselines, and the summary of the run."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from orchestrator.costs import AXES, COSTS
from orchestrator.results.quantities import (
    axis_words,
    cost_words,
    count,
    mean_and_spread,
    percent,
)
from orchestrator.results.rows import ConfirmedRow, Rows

if TYPE_CHECKING:
    from rich.table import Table

_ROOMY_WIDTH = 130  # columns
_PLAIN_WIDTH = 200  # columns; nothing to wrap at where there is no terminal


def front_table(rows: Rows, quality: str, further: Sequence[str] = ()) -> Table:
    """One line per confirmed model, large to small, beside it the baselines matched to it
    (`ConfirmedRow.trial`).

    All qualities are on test data; 'against dense' is the difference of the means. Methods that
    differ are named. `further` are the costs and metrics that are optimised beside the quality and
    the cost of the axis.
    """
    from rich.table import Table

    names = list(dict.fromkeys(row.origin for row in rows.baselines))
    table = Table(
        title=f"The front: {quality} on test data, mean ± standard deviation", title_justify="left"
    )
    several_methods = len({row.method for row in rows.front}) > 1
    columns = _columns(rows.axis, further)
    for header in ("trial", *(["method"] if several_methods else []), *columns):
        table.add_column(header, justify="right", no_wrap=True)
    for header in (quality, "against dense", *names):
        table.add_column(header, justify="right")

    def begin(row: ConfirmedRow, name: str) -> list[str]:
        method = [row.method] if several_methods else []
        quality_cell = mean_and_spread(row.test_mean, row.test_std)
        return [name, *method, *(cell(row) for cell in columns.values()), quality_cell]

    if rows.dense is not None:
        table.add_row(*begin(rows.dense, "dense"))
    for row in sorted(rows.front, key=lambda member: -member.cost):
        table.add_row(*begin(row, str(row.trial)), *_compared(row, rows, names))
    return table


def _compared(row: ConfirmedRow, rows: Rows, names: Sequence[str]) -> list[str]:
    """The cells beside a front row: against the dense model, then its match in each baseline."""
    matched = {(other.origin, other.trial): other for other in rows.baselines}
    against = "" if rows.dense is None else f"{row.test_mean - rows.dense.test_mean:+.4f}"
    return [against, *(_baseline_cell(matched.get((name, row.trial))) for name in names)]


def summary_table(title: str, lines: Iterable[tuple[str, str]]) -> Table:
    """Two columns, (what, value), in the order given."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in lines:
        table.add_row(what, value)
    return table


def show(table: Table, stream: TextIO | None = None) -> None:
    """Prints for the terminal `stream` is (stdout by default), or else as plain lines that paste
    into Markdown.
    """
    from rich import box
    from rich.console import Console

    target = sys.stdout if stream is None else stream
    if target.isatty():
        console = Console(file=target, highlight=False)
        table.box = box.SIMPLE_HEAD if console.width >= _ROOMY_WIDTH else None
        table.padding = (0, 1, 0, 0)  # without lines the front with three baselines fits 80 columns
        console.print(table)
    else:
        table.box = box.MARKDOWN
        console = Console(
            file=io.StringIO(), highlight=False, color_system=None, width=_PLAIN_WIDTH
        )
        with console.capture() as captured:
            console.print(table)
        target.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    target.flush()


def _columns(axis: str, further: Sequence[str]) -> dict[str, Callable[[ConfirmedRow], str]]:
    """Header to cell: the axis and what is left along it, the rest of what is optimised, and what
    else one asks for.
    """
    found: dict[str, Callable[[ConfirmedRow], str]] = {
        axis_words(axis): lambda row: (
            count(row.cost) if axis in AXES else cost_words(axis, row.cost)
        ),
        "left": lambda row: percent(row.cost_ratio),
    }
    if axis not in AXES:
        found["FLOPs left"] = lambda row: percent(row.ratios["flops"])
    if axis == "effective_flops":
        found["nonzero"] = lambda row: percent(1.0 - row.sparsity)
    elif axis != "params":
        found["params"] = lambda row: percent(row.ratios["params"])
    if axis != "latency_ms":
        found["ms"] = lambda row: (
            f"{row.costs['latency_ms']:.2f}" if "latency_ms" in row.costs else ""
        )
    for name in further:
        if name in COSTS and name not in ("params", "latency_ms"):
            found[axis_words(name)] = lambda row, name=name: cost_words(name, row.costs[name])  # type: ignore[misc]
        elif name not in COSTS:
            found[name] = lambda row, name=name: (
                f"{row.metrics[name]:.4f}" if name in row.metrics else ""
            )  # type: ignore[misc]
    return found


def _baseline_cell(row: ConfirmedRow | None) -> str:
    return "" if row is None else mean_and_spread(row.test_mean, row.test_std)
