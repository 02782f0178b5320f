"""The rows of trials.csv, rungs.csv, front.csv and baselines.csv, and their way to disk and back."""

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
from orchestrator.files import write_atomic


class OnAxis:
    """A row of a study whose front is laid out along `axis`, the first of its costs."""

    axis: str
    dense_cost: float

    @property
    def cost(self) -> float:
        """The cost along the study's axis; 0 where it is not known."""
        return getattr(self, self.axis) or 0

    @property
    def cost_ratio(self) -> float:
        """The same against the dense model's; 0 where it is not known."""
        known = getattr(self, f"{self.axis}_ratio", None)
        if known is None and self.dense_cost:
            known = self.cost / self.dense_cost
        return known or 0.0


@dataclass(frozen=True)
class TrialRow(OnAxis):
    """One trial: `quality` on validation data, `flops` = 2 x MACs, ratios against the dense model, wall-clock seconds.

    `effective_flops` count nonzero weights alone; `axis` names the cost that the study's front is laid out along and
    `dense_cost` is the dense model's. `metrics` are the further ones of the study, on validation data too.
    `parent` is the number of the trial whose weights it inherited, None for the dense model; `loss` is the validation
    loss (nats). `kind` says how the plan was made (an allocation of the chain, or the sampler), `reason` why it did not
    complete.
    """

    number: int
    state: str
    rung: int
    parent: int | None
    quality: float | None
    flops: int | None
    flops_ratio: float | None
    params: int | None
    params_ratio: float | None
    seconds: float
    loss: float | None
    kind: str
    reason: str
    method: str = ""
    effective_flops: int | None = None
    effective_flops_ratio: float | None = None
    axis: str = "flops"
    dense_cost: float = 0.0
    nonzero_params: int | None = None
    size_mb: float | None = None
    latency_ms: float | None = None
    estimated_latency_ms: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FrontRow(OnAxis):
    """One confirmed model: mean and standard deviation of the quality on test data over `seeds` finetunings.

    `sparsity` is the share of the dense model's parameters that are gone or zero, `size_mb` that of the tensors, or of
    the int8 file where the model is quantised; `metrics` are means on test data of the further ones of the study.
    """

    trial: int
    test_mean: float
    test_std: float
    seeds: int
    flops: int
    flops_ratio: float
    params: int
    params_ratio: float
    latency_ms: float
    path: str
    method: str = ""
    effective_flops: int = 0
    effective_flops_ratio: float = 0
    axis: str = "flops"
    sparsity: float = 0.0
    size_mb: float = 0.0
    dense_cost: float = 0.0
    nonzero_params: int = 0
    estimated_latency_ms: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BaselineRow(OnAxis):
    """One baseline at the cost of the front model `trial` (None for the dense model); else as in `FrontRow`."""

    baseline: str
    trial: int | None
    test_mean: float
    test_std: float
    seeds: int
    flops: int
    flops_ratio: float
    params: int
    params_ratio: float
    latency_ms: float
    path: str
    method: str = ""
    effective_flops: int = 0
    effective_flops_ratio: float = 0
    axis: str = "flops"
    sparsity: float = 0.0
    size_mb: float = 0.0
    dense_cost: float = 0.0
    nonzero_params: int = 0
    estimated_latency_ms: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RungRow:
    """One row of rungs.csv: Spearman's correlation of what a rung showed with the quality in the end; 1 = same order.

    `loss` and `quality` are the rung's on validation data, signed so that 1 is good. `..._at_cost` are partial: ranks
    with those of log FLOPs taken out, since larger models lead at every rung. `trials` completed after more finetuning
    than this rung; None stands for too few of them, or for values that are all the same. Where trials were stopped the
    rest is alike, which lowers the correlations.
    """

    rung: int
    trials: int
    loss: float | None
    loss_at_cost: float | None
    quality: float | None
    quality_at_cost: float | None


Row = TypeVar("Row", TrialRow, FrontRow, BaselineRow, RungRow)


def write_csv(path: str | Path, rows: Sequence[Row], row_type: type[Row]) -> None:
    """Writes the header also when there are no rows; None is an empty cell, floats keep every digit."""
    names = [column.name for column in fields(row_type)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    write_atomic(path, text.getvalue())


def read_csv(path: str | Path, row_type: type[Row]) -> list[Row]:
    """The rows `write_csv` wrote, with their types; DataError names the line and column that do not fit."""
    hints = get_type_hints(row_type)
    names = [column.name for column in fields(row_type)]
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        if header != names:
            raise DataError(
                f"{path} must have the columns {names}; it has {header}; it was written by another version "
                "or changed by hand: move it away and run the job again"
            )
        rows = []
        for cells in reader:
            where = f"{path} line {reader.line_num}"
            if len(cells) != len(names):
                raise DataError(f"{where} must have {len(names)} cells; it has {len(cells)}; mend or remove it")
            values = {n: _value(cell, hints[n], where, n) for n, cell in zip(names, cells, strict=True)}
            rows.append(row_type(**values))
    return rows


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else str(value)


def _value(cell: str, hint: Any, where: str, column: str) -> Any:
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional and cell == "":
        return None
    kind = next(a for a in get_args(hint) if a is not type(None)) if optional else hint
    read, name = (json.loads, "JSON") if get_origin(kind) is dict else (kind, kind.__name__)
    try:
        return read(cell)
    except ValueError as error:
        raise DataError(f"{where}: {column} must be {name}; got '{cell}'; mend or remove the line") from error
