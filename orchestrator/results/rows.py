"""The rows of trials.csv, rungs.csv, front.csv and baselines.csv, and their way to disk and
back.
"""

from __future__ import annotations

import csv
import io
import json
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_modules.errors import DataError
from orchestrator.costs import COSTS, ratio_name
from orchestrator.files import write_atomic


class OnAxis:
    """A row of a study whose front is laid out along `axis`, the first of its costs.

    `costs` are by name, those that are known; `ratios` are the same against the dense model's. In a
    table each cost is a column, and each ratio: `flops`, `flops_ratio`.
    """

    axis: str
    costs: dict[str, float]
    ratios: dict[str, float]

    @property
    def cost(self) -> float:
        """The cost along the study's axis; 0 where it is not known."""
        return self.costs.get(self.axis, 0.0)

    @property
    def cost_ratio(self) -> float:
        """The same against the dense model's; 0 where it is not known."""
        return self.ratios.get(self.axis, 0.0)


@dataclass(frozen=True)
class TrialRow(OnAxis):
    """One trial: `quality` on validation data, costs, wall-clock seconds.

    `metrics` are the further ones of the study, on validation data too. `parent` is the number of
    the trial whose weights it inherited, None for the dense model; `loss` is the validation loss.
    `kind` says how the plan was made (the chain, the sampler, a user, another study), `reason` why
    it did not complete.
    """

    number: int
    state: str
    rung: int
    parent: int | None
    quality: float | None
    seconds: float
    loss: float | None
    kind: str
    reason: str
    method: str = ""
    axis: str = "flops"
    costs: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfirmedRow(OnAxis):
    """One confirmed model: mean and standard deviation of the quality on test data over `seeds`
    finetunings.

    `origin` says who made it: `front`, the `dense` model, or a baseline by its name. `trial` is the
    front's trial, or the one that a baseline is matched to; None for the dense model. `sparsity` is
    the share of the dense model's parameters that are gone or zero, `metrics` are means on test
    data of the further ones of the study.
    """

    origin: str
    trial: int | None
    test_mean: float
    test_std: float
    seeds: int
    path: str = ""
    method: str = ""
    axis: str = "flops"
    costs: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    sparsity: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RungRow:
    """One row of rungs.csv: Spearman's correlation of what a rung showed with the quality in the
    end; 1 = same order.

    `loss` and `quality` are the rung's on validation data, signed so that 1 is good. `..._at_cost`
    are partial: ranks with those of log FLOPs taken out, since larger models lead at every rung.
    `trials` completed after more finetuning than this rung; None stands for too few of them, or for
    values that are all the same. Where trials were stopped the rest is alike, which lowers the
    correlations.
    """

    rung: int
    trials: int
    loss: float | None
    loss_at_cost: float | None
    quality: float | None
    quality_at_cost: float | None


AnyRow = TypeVar("AnyRow")
SPREAD = ("costs", "ratios")
"""Fields that become columns of their own."""


@dataclass(frozen=True)
class Rows:
    """What a study found: its trials, the confirmed front, the baselines matched to it, the dense
    model.

    `dense` is finetuned as long as the front's models; None where it is not confirmed.
    """

    trials: Sequence[TrialRow] = ()
    front: Sequence[ConfirmedRow] = ()
    baselines: Sequence[ConfirmedRow] = ()
    dense: ConfirmedRow | None = None

    @property
    def axis(self) -> str:
        """The cost along which the front is laid out."""
        for row in (*self.front, *self.trials):
            return row.axis
        return "flops"


def write_csv(path: str | Path, rows: Sequence[AnyRow], row_type: type[AnyRow]) -> None:
    """Writes the header also when there are no rows; None is an empty cell, floats keep every
    digit.

    Costs that no row has get no column.
    """
    names = _plain_columns(row_type)
    spread = _spread_columns(rows) if _has_costs(row_type) else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *(column for column, _, _ in spread)])
    for row in rows:
        plain_cells = [_cell(getattr(row, name)) for name in names]
        writer.writerow(
            [*plain_cells, *(_cell(getattr(row, part).get(cost)) for _, part, cost in spread)]
        )
    write_atomic(path, text.getvalue())


def _has_costs(row_type: type[Any]) -> bool:
    return issubclass(row_type, OnAxis)


def _plain_columns(row_type: type[Any]) -> list[str]:
    return [column.name for column in fields(row_type) if column.name not in SPREAD]


def _spread_columns(rows: Sequence[Any]) -> list[tuple[str, str, str]]:
    """(column, field, cost) of every cost and ratio that some row has, in the order of the table of
    costs.
    """
    columns = []
    for cost in COSTS:
        for part, name in zip(SPREAD, (cost, ratio_name(cost)), strict=True):
            if any(cost in getattr(row, part) for row in rows):
                columns.append((name, part, cost))
    return columns


def read_csv(path: str | Path, row_type: type[AnyRow]) -> list[AnyRow]:
    """The rows `write_csv` wrote, with their types; DataError names the line and column that do not
    fit.
    """
    names = _plain_columns(row_type)
    known = {
        name: (part, cost)
        for cost in COSTS
        for part, name in zip(SPREAD, (cost, ratio_name(cost)), strict=True)
    }
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        more = header[len(names) :]
        if header[: len(names)] != names or any(
            name not in known for name in more if _has_costs(row_type)
        ):
            raise DataError(
                f"{path} must have the columns {names}; it has {header}; it was written by another "
                "version "
                "or changed by hand: move it away and run the job again"
            )
        rows = []
        for cells in reader:
            where = f"{path} line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where} must have {len(header)} cells; it has {len(cells)}; mend or remove it"
                )
            rows.append(
                _row(row_type, names, [(name, *known[name]) for name in more], cells, where)
            )
    return rows


def _row(
    row_type: type[AnyRow],
    names: list[str],
    spread: list[tuple[str, str, str]],
    cells: list[str],
    where: str,
) -> AnyRow:
    hints = get_type_hints(row_type)
    values = {
        n: _value(cell, hints[n], where, n)
        for n, cell in zip(names, cells[: len(names)], strict=True)
    }
    for (column, part, cost), cell in zip(spread, cells[len(names) :], strict=True):
        values.setdefault(part, {})
        if cell:
            values[part][cost] = _value(cell, float, where, column)
    return row_type(**values)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, float):
        return (
            str(int(value)) if value.is_integer() and abs(value) >= 1e4 else repr(value)
        )  # counts read as counts
    return str(value)


def _value(cell: str, hint: Any, where: str, column: str) -> Any:
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional and cell == "":
        return None
    kind = next(a for a in get_args(hint) if a is not type(None)) if optional else hint
    read, name = (json.loads, "JSON") if get_origin(kind) is dict else (kind, kind.__name__)
    try:
        return read(cell)
    except ValueError as error:
        raise DataError(
            f"{where}: {column} must be {name}; got '{cell}'; mend or remove the line"
        ) from error
