"""Tables: rows of numbers with a class or a number to predict, embedded or from a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from lightning_modules.data.in_memory import InMemory, Split
from lightning_modules.errors import DataError

EMBEDDED = {
    "breast_cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "wine": datasets.load_wine,
}
"""Tables that are part of scikit-learn."""
TEST_FRACTION = 0.3
"""Share of all rows that is test data."""
VAL_FRACTION = 0.25
"""Share of the other rows that is validation data."""
LEAST_ROWS = 10
"""Fewest rows of the table, and of each class: every split then has some."""


def table(
    source: str = "breast_cancer",
    target: str | None = None,
    classes: bool = True,
    batch_size: int = 32,
    seed: int = 0,
) -> InMemory:
    """Rows of a CSV file with a header, or of one of scikit-learn's tables (`EMBEDDED`).

    `source` is the path of the file, or the name of the table. The column `target` of the file is
    predicted from all others, which are numbers. With `classes` its distinct values are the
    classes, in sorted order; otherwise it is a number. `seed` makes the split.
    Inputs (n, columns) are standardised by the training data, and so are targets that are numbers.
    Errors: DataError for a file that is missing or not such a table.
    """

    def read() -> tuple[Split, Split]:
        if source in EMBEDDED:
            columns, values = EMBEDDED[source](return_X_y=True)
        else:
            columns, values = _csv_table(Path(source), target, classes)
        _check_rows(len(values), "the table")
        inputs = torch.from_numpy(columns).float()
        if classes:
            targets = torch.from_numpy(_class_indices(values))
        else:
            targets = torch.from_numpy(values).float()
        train, test = train_test_split(
            np.arange(len(targets)),
            test_size=TEST_FRACTION,
            random_state=seed,
            stratify=values if classes else None,
        )
        return (inputs[train], targets[train]), (inputs[test], targets[test])

    return InMemory(read, batch_size=batch_size, val_fraction=VAL_FRACTION, seed=seed)


def _class_indices(values: np.ndarray) -> np.ndarray:
    """The place of each value among the distinct ones.

    Errors: DataError for a single class, or one of too few rows."""
    known, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(known) == 1:
        raise DataError(f"the target must have at least two classes; every row has {known[0]}")
    rarest = int(counts.argmin())
    _check_rows(int(counts[rarest]), f"class {known[rarest]} of the target")
    return indices


def _check_rows(count: int, owner: str) -> None:
    if count < LEAST_ROWS:
        raise DataError(
            f"a table, and each class in it, needs at least {LEAST_ROWS} rows; {owner} has "
            f"{count}; if the target is a number: data.classes=false"
        )


def _csv_table(path: Path, target: str | None, classes: bool) -> tuple[np.ndarray, np.ndarray]:
    """(columns, target) of a CSV file; a target that is a class stays text."""
    header, rows = csv_rows(path, EMBEDDED)
    if target not in header:
        raise DataError(
            f"data.target must be a column of {path}; got '{target}'; it has {', '.join(header)}"
        )
    place = header.index(target)
    others = [column for column in range(len(header)) if column != place]
    if not others:
        raise DataError(f"{path} must have columns beside the target; it has '{target}' alone")
    columns = [[_number(path, header, row, column) for column in others] for row in rows]
    if classes:
        values = [cells[place].strip() for _, cells in rows]
    else:
        values = [_number(path, header, row, place) for row in rows]
    return np.array(columns), np.array(values)


CsvRow = tuple[int, list[str]]
"""The line of a row in its file, and its cells."""


def csv_rows(path: Path, embedded: Iterable[str]) -> tuple[list[str], list[CsvRow]]:
    """(header, rows). Errors: DataError for a missing file, or rows of another length.

    `embedded` are the other sources, for the message.
    """
    if not path.is_file():
        raise DataError(
            f"data.source must be the path of a CSV file, or one of {', '.join(embedded)}; "
            f"{path} is no file"
        )
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, cells) for cells in reader if cells]
    if len(set(header)) < len(header):
        raise DataError(f"the columns of {path} must have different names; got {', '.join(header)}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"each row of {path} must have the {len(header)} columns of its header, apart by "
                f"commas; line {line} has {len(cells)}"
            )
    return header, rows


def _number(path: Path, header: Sequence[str], row: CsvRow, column: int) -> float:
    """Errors: DataError for a cell that is no finite number."""
    line, cells = row
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"every cell of {path} must be a finite number; line {line} has '{cells[column]}' in "
            f"column '{header[column]}': write numbers for names and for missing values, or leave "
            "the column out"
        )
    return value
