"""The rows of trials.csv, rungs.csv, front.csv and baselines.csv, written and read back."""

from __future__ import annotations

import csv
import io
import json
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_modules.errors import DataError
from orchestrator.costs import COSTS, ratio_name
from orchestrator.files import write_atomic

FRONT_ORIGIN = "front"
"""The origin of models that the search found."""


class OnAxis:
    """A row of a study whose front is laid out along `axis`, the first of its costs.

    `costs` are the known ones by name; `ratios` are the same against the dense model's. In a table
    each cost is a column, and each ratio: `flops`, `flops_ratio`.
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
    """One confirmed model, finetuned and tested with several seeds.

    `test_mean` and `test_std` are mean and standard deviation of the quality on test data over
    `seeds` finetunings. `origin` says who made it: `front`, the `dense` model, or a baseline by its
    name; models of baselines stand on the front, too, where they are ahead of it. `trial` is the
    front's trial, or the one that a baseline is matched to; None for the dense model. `sparsity` is
    the share of the dense model's parameters that are gone or zero, `metrics` are means on test
    data of the further ones of the study, `latency_iqr_ms` is the distance of the quartiles of its
    latency. `validation` are means on validation data, which decide what is on the front.
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
    latency_iqr_ms: float | None = None
    validation: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells it from the other models of its study, and its folder in `models`."""
        if self.trial is None:
            return self.origin
        return str(self.trial) if self.origin == FRONT_ORIGIN else f"{self.origin}-{self.trial}"

    @property
    def words(self) -> str:
        """The same where people read it: trial 3, uniform 3."""
        if self.trial is None:
            return self.origin
        maker = "trial" if self.origin == FRONT_ORIGIN else self.origin
        return f"{maker} {self.trial}"


@dataclass(frozen=True)
class RungRow:
    """One row of rungs.csv: how far the results at a rung foretell the final quality.

    Values are Spearman's correlations; 1 = same order. `loss` and `quality` are the rung's on
    validation data, signed so that 1 is good. `..._at_cost` are partial: ranks with those of log
    FLOPs taken out, since larger models lead at every rung. `trials` completed after more
    finetuning than this rung; None stands for too few of them, or for values that are all the same.
    Where trials were stopped the rest is alike, which lowers the correlations.
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
    """The results of a study: its trials, confirmed front, matched baselines and dense model.

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
    """Writes the header also when there are no rows.

    None is an empty cell, and floats keep every digit. Costs that no row has get no column.
    """
    names = _plain_columns(row_type)
    spread = _spread_columns(rows) if _has_costs(row_type) else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *(column for column, _, _ in spread)])
    for row in rows:
        cells = [_cell(getattr(row, name)) for name in names]
        for _, part, cost in spread:
            cells.append(_cell(getattr(row, part).get(cost)))
        writer.writerow(cells)
    write_atomic(path, text.getvalue())


def _has_costs(row_type: type[Any]) -> bool:
    return issubclass(row_type, OnAxis)


def _plain_columns(row_type: type[Any]) -> list[str]:
    return [column.name for column in fields(row_type) if column.name not in SPREAD]


def _spread_columns(rows: Sequence[Any]) -> list[tuple[str, str, str]]:
    """(column, field, cost) of every cost and ratio that some row has.

    They are in the order of the table of costs.
    """
    present: set[tuple[str, str]] = set()
    for row in rows:
        for part in SPREAD:
            present |= {(part, cost) for cost in getattr(row, part)}
    return [column for column in _known_columns() if column[1:] in present]


def _known_columns() -> list[tuple[str, str, str]]:
    """(column, field, cost) of every cost and ratio that there is."""
    columns = []
    for cost in COSTS:
        columns.append((cost, "costs", cost))
        columns.append((ratio_name(cost), "ratios", cost))
    return columns


def read_csv(path: str | Path, row_type: type[AnyRow]) -> list[AnyRow]:
    """The rows that `write_csv` wrote, with their types.

    Errors: DataError with the line and column that do not fit.
    """
    names = _plain_columns(row_type)
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        spread = _spread_in(header[len(names) :])
        if header[: len(names)] != names or spread is None:
            raise DataError(
                f"{path} must have the columns {names}; it has {header}; it was written by another "
                "version or changed by hand: move it away and run the job again"
            )
        rows = []
        for cells in reader:
            where = f"{path} line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where} must have {len(header)} cells; it has {len(cells)}; mend or remove it"
                )
            rows.append(_row(row_type, names, spread, cells, where))
    return rows


def _spread_in(columns: Sequence[str]) -> list[tuple[str, str, str]] | None:
    """(column, field, cost) of these columns; None where one of them is of no cost."""
    known = {column: (column, part, cost) for column, part, cost in _known_columns()}
    if not set(columns) <= set(known):
        return None
    return [known[column] for column in columns]


@cache
def _hints(row_type: type[Any]) -> dict[str, Any]:
    """The types of a row's columns; working them out takes longer than reading a row."""
    return get_type_hints(row_type)


def _row(
    row_type: type[AnyRow],
    names: list[str],
    spread: list[tuple[str, str, str]],
    cells: list[str],
    where: str,
) -> AnyRow:
    hints = _hints(row_type)  # type: ignore[arg-type]  # a class is hashable
    values: dict[str, Any] = {}
    for name, cell in zip(names, cells[: len(names)], strict=True):
        values[name] = _value(cell, hints[name], where, name)
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
        # counts are written without a decimal point
        if value.is_integer() and abs(value) >= 1e4:
            return str(int(value))
        return repr(value)
    return str(value)


def _value(cell: str, hint: Any, where: str, column: str) -> Any:
    kind = hint
    if get_origin(hint) in (Union, types.UnionType):
        if cell == "":
            return None
        (kind,) = [part for part in get_args(hint) if part is not type(None)]
    read = kind
    if get_origin(kind) is dict:
        read = json.loads
    try:
        return read(cell)
    except ValueError as error:
        name = "JSON" if read is json.loads else kind.__name__
        raise DataError(
            f"{where}: {column} must be {name}; got '{cell}'; mend or remove the line"
        ) from error
