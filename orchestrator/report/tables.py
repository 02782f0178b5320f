"""What a person sees at the end: the front with its baselines, and the summary of the run."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from orchestrator.costs import AXES, COSTS
from orchestrator.results.quantities import (
    axis_words,
    cost_words,
    count,
    mean_and_spread,
    percent,
)
from orchestrator.results.rows import FRONT_ORIGIN, ConfirmedRow, Rows

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.export.parity import Exported

BEATEN = "*"
"""The mark of a model that a smaller one beats on test data."""
_ROOMY_WIDTH = 150
"""Columns of a terminal from which on tables have lines."""
_PLAIN_WIDTH = 200
"""Columns of a table where there is no terminal at which lines would wrap."""


def show_front(rows: Rows, quality: str, further: Sequence[str] = (), sign: float = 1.0) -> None:
    """Prints `front_table`; a narrow terminal is spared the columns that one misses least.

    They are the measured times, then the baselines from the last on; front.csv has them all.
    """
    names = list(dict.fromkeys(row.origin for row in rows.baselines))
    spare = ["faster", "ms", *reversed(names)]
    without: list[str] = []
    table = front_table(rows, quality, further, sign)
    while spare and not fits(table):
        without.append(spare.pop(0))
        table = front_table(rows, quality, further, sign, without)
    if without:
        table.caption = f"left out for the width: {', '.join(without)}"
        table.caption_justify = "left"
    show(table)


def front_table(
    rows: Rows,
    quality: str,
    further: Sequence[str] = (),
    sign: float = 1.0,
    without: Sequence[str] = (),
) -> Table:
    """One line per confirmed model, large to small, beside it the baselines matched to it.

    They are matched by `ConfirmedRow.trial`. All qualities are on test data; 'against dense' is the
    difference of the means. Methods that differ are named. `further` are the costs and metrics that
    are optimised beside the quality and the cost of the axis. Columns `without` are left out. A
    star marks a model that a smaller one of the front beats on test data, of which the search knew
    nothing; with `sign` -1 a small quality is good.
    """
    from rich.table import Table

    origins = dict.fromkeys(row.origin for row in rows.baselines)
    names = [name for name in origins if name not in without]
    table = Table(
        title=f"The front: {quality} on test data, mean ± standard deviation", title_justify="left"
    )
    columns = _columns(rows.axis, further)
    if len({row.method for row in rows.front}) > 1:
        columns = {"method": lambda row: row.method, **columns}
    columns = {name: cell for name, cell in columns.items() if name not in without}
    for header in ("model", *columns):
        table.add_column(header, justify="right", no_wrap=True)
    for header in (quality, "against dense", *names):
        table.add_column(header, justify="right")

    if rows.dense is not None:
        table.add_row(*_begin(rows.dense, "dense", columns))
    for row in sorted(rows.front, key=lambda member: -member.cost):
        mark = BEATEN if beaten(row, rows.front, sign) else ""
        table.add_row(*_begin(row, f"{_short(row)}{mark}", columns), *_compared(row, rows, names))
    return table


def _begin(
    row: ConfirmedRow, name: str, columns: Mapping[str, Callable[[ConfirmedRow], str]]
) -> list[str]:
    """The cells of a row up to its quality."""
    cells = [cell(row) for cell in columns.values()]
    return [name, *cells, mean_and_spread(row.test_mean, row.test_std)]


def _short(row: ConfirmedRow) -> str:
    """The trial's number, or who made the model."""
    return str(row.trial) if row.origin == FRONT_ORIGIN else row.words


def beaten(row: ConfirmedRow, front: Sequence[ConfirmedRow], sign: float) -> bool:
    """Whether another model of the front costs less and is better on test data."""
    for other in front:
        if other.cost < row.cost and sign * other.test_mean > sign * row.test_mean:
            return True
    return False


def _compared(row: ConfirmedRow, rows: Rows, names: Sequence[str]) -> list[str]:
    """The cells beside a front row: against the dense model, then its match in each baseline."""
    cells = [""]
    if rows.dense is not None:
        cells = [f"{row.test_mean - rows.dense.test_mean:+.4f}"]
    if row.origin != FRONT_ORIGIN:
        return cells
    matched = {(other.origin, other.trial): other for other in rows.baselines}
    for name in names:
        match = matched.get((name, row.trial))
        cells.append("" if match is None else mean_and_spread(match.test_mean, match.test_std))
    return cells


def plain_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of text, the first column to the left and numbers to the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def summary_table(title: str, lines: Iterable[tuple[str, str]]) -> Table:
    """Two columns, (name, value), in the order given."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, value)
    return table


def fits(table: Table, stream: TextIO | None = None) -> bool:
    """Whether the terminal that `stream` is (stdout by default) has room for the whole table.

    Where it is no terminal there is no width to fit.
    """
    from rich.console import Console

    target = sys.stdout if stream is None else stream
    if not target.isatty():
        return True
    console = Console(file=target)
    _suit(table, console)
    # what the table would take if it had all the room
    return console.measure(table, options=console.options.update(width=1000)).maximum <= (
        console.width
    )


def _suit(table: Table, console: Console) -> None:
    """Lines between the parts where there is room for them."""
    from rich import box

    table.box = box.SIMPLE_HEAD if console.width >= _ROOMY_WIDTH else None
    table.padding = (0, 1, 0, 0)


def show(table: Table, stream: TextIO | None = None, width: int = _PLAIN_WIDTH) -> None:
    """Prints for the terminal that `stream` is (stdout by default).

    Where it is no terminal, plain lines of at most `width` columns are printed that paste into
    Markdown.
    """
    from rich import box
    from rich.console import Console

    target = sys.stdout if stream is None else stream
    if target.isatty():
        console = Console(file=target, highlight=False)
        _suit(table, console)
        console.print(table)
    else:
        table.box = box.MARKDOWN
        console = Console(file=io.StringIO(), highlight=False, color_system=None, width=width)
        with console.capture() as captured:
            console.print(table)
        for line in captured.get().splitlines():
            target.write(f"{line.rstrip()}\n")
    target.flush()


def _columns(axis: str, further: Sequence[str]) -> dict[str, Callable[[ConfirmedRow], str]]:
    """Header to cell.

    The columns are the axis and what is left along it, the rest of what is optimised, and what else
    one asks for.
    """
    columns: dict[str, Callable[[ConfirmedRow], str]] = {
        axis_words(axis): _axis_cell(axis),
        "left": lambda row: percent(row.cost_ratio),
    }
    if axis not in AXES:
        columns["FLOPs left"] = lambda row: percent(row.ratios["flops"])
    if axis == "effective_flops":
        columns["nonzero"] = lambda row: percent(1.0 - row.sparsity)
    elif axis != "params":
        columns["params"] = lambda row: percent(row.ratios["params"])
    if axis != "latency_ms":
        columns["ms"] = _latency_cell
    columns["faster"] = _faster_cell
    for name in further:
        if name not in COSTS:
            columns[name] = _metric_cell(name)
        elif name not in ("params", "latency_ms"):
            columns[axis_words(name)] = _cost_cell(name)
    return columns


def _axis_cell(axis: str) -> Callable[[ConfirmedRow], str]:
    if axis in AXES:
        return lambda row: count(row.cost)
    return lambda row: cost_words(axis, row.cost)


def _cost_cell(name: str) -> Callable[[ConfirmedRow], str]:
    return lambda row: cost_words(name, row.costs[name])


def _metric_cell(name: str) -> Callable[[ConfirmedRow], str]:
    return lambda row: f"{row.metrics[name]:.4f}" if name in row.metrics else ""


def _latency_cell(row: ConfirmedRow) -> str:
    if "latency_ms" not in row.costs:
        return ""
    return f"{row.costs['latency_ms']:.2f}"


def _faster_cell(row: ConfirmedRow) -> str:
    """How many times as fast as the dense model, measured beside it."""
    ratio = row.ratios.get("latency_ms")
    return f"{1.0 / ratio:.1f}x" if ratio else ""


def export_table(exports: Sequence[Exported], quality: str) -> Table:
    """One line per format: its file, and how it compares with the model in PyTorch."""
    from rich.table import Table

    table = Table(title="Exported files, compared on validation data", title_justify="left")
    headers = ("file", "MB", "largest difference", "equal predictions", quality, "ms", "faster")
    for header in headers:
        table.add_column(header, justify="left" if header == "file" else "right")
    for export in exports:
        if export.reason:
            table.add_row(export.file, "", f"left out: {export.reason}")
            continue
        equal = "" if export.equal_predictions is None else percent(export.equal_predictions)
        value = export.metrics.get(quality)
        table.add_row(
            export.file,
            f"{export.size_mb:.2f}",
            f"{export.largest_difference:.2g}",
            equal,
            "" if value is None else f"{value:.4f}",
            "" if export.latency_ms is None else f"{export.latency_ms:.3g}",
            "" if export.faster is None else f"{export.faster:.1f}x",
        )
    return table
