"""Sequences of numbers of different lengths, with a class: speech, from .ts files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from lightning_modules.data.in_memory import LEAST_DEVIATION
from lightning_modules.data.named import LABELS, Named, Samples
from lightning_modules.errors import ConfigError, DataError

VALIDATION_PART = 0.25
"""Share of the training sequences that is validation data."""
LEAST_SEQUENCES = 4
"""Fewest training sequences of a class."""

Series = tuple[list[Tensor], list[str]]
"""Sequences, each (steps, features), and the class of each."""


def series(
    name: str = "JapaneseVowels", folder: str | None = None, batch_size: int = 16, seed: int = 0
) -> Named:
    """The sequences in `folder`/`name`_TRAIN.ts and `name`_TEST.ts, with a class each.

    Without a folder they are those of the package aeon, which need not be imported. `seed` chooses
    the validation data. Features are standardised by the training data.
    Samples: `features` (n, steps, features), zeros behind the end; `lengths` (n,); `labels` (n,),
    the place of the class among the sorted ones.
    Errors: ConfigError without aeon; DataError for a file that is missing or of another form.
    """

    def read() -> dict[str, Samples]:
        home = _folder_of_aeon(name) if folder is None else Path(folder)
        sequences, classes = _read(home / f"{name}_TRAIN.ts")
        test = _read(home / f"{name}_TEST.ts")
        known = {label: place for place, label in enumerate(sorted(set(classes)))}
        _check_classes(name, classes, test[1])
        train, val = train_test_split(
            np.arange(len(classes)), test_size=VALIDATION_PART, random_state=seed, stratify=classes
        )
        parts = {
            "train": ([sequences[i] for i in train], [classes[i] for i in train]),
            "val": ([sequences[i] for i in val], [classes[i] for i in val]),
            "test": test,
        }
        steps = max(len(x) for part, _ in parts.values() for x in part)
        seen = torch.cat(parts["train"][0])
        mean = seen.mean(0)
        deviation = seen.std(0).clamp_min(LEAST_DEVIATION)
        splits = {}
        for part, (rows, labels) in parts.items():
            standard = [(row - mean) / deviation for row in rows]
            splits[part] = _samples(standard, [known[label] for label in labels], steps)
        return splits

    return Named(read, batch_size, seed)


def _folder_of_aeon(name: str) -> Path:
    """Where aeon has its data. Errors: ConfigError without aeon."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"data.name={name} is part of aeon; install it with pip install "
            "'pruning-orchestrator[speech]', or give data.folder"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / name


def _read(path: Path) -> Series:
    """The sequences of a file. Errors: DataError for a missing file, or one of another form.

    After the line @data each line is a sequence: its dimensions apart by colons, each the numbers
    of its steps apart by commas, and then its class.
    """
    if not path.is_file():
        raise DataError(
            f"data.folder must hold {path.name}, in the .ts format of the UCR archive; {path} is "
            "no file"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    begin = [place for place, line in enumerate(lines) if line.strip().lower() == "@data"]
    sequences = []
    classes = []
    for place in range(begin[0] + 1 if begin else len(lines), len(lines)):
        if lines[place].strip():
            *dimensions, label = lines[place].split(":")
            sequences.append(_sequence(path, place + 1, dimensions))
            classes.append(label.strip())
    if not sequences:
        raise DataError(f"{path} must have sequences after a line @data; it has none")
    if len({x.shape[1] for x in sequences}) > 1:
        raise DataError(f"all sequences of {path} must have the same number of dimensions")
    return sequences, classes


def _sequence(path: Path, line: int, dimensions: list[str]) -> Tensor:
    """Shape (steps, features)."""
    try:
        columns = [[float(number) for number in column.split(",")] for column in dimensions]
        values = torch.tensor(columns).T
    except ValueError as error:
        raise DataError(
            f"each dimension of {path} must have the same number of steps, all numbers; line "
            f"{line}: {error}"
        ) from error
    if values.dim() != 2 or not values.isfinite().all():
        raise DataError(f"{path} must have finite numbers and a class; line {line} has others")
    return values.contiguous()


def _check_classes(name: str, train: list[str], test: list[str]) -> None:
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise DataError(f"the test data of {name} has classes without training data: {unknown}")
    rare = [label for label in sorted(set(train)) if train.count(label) < LEAST_SEQUENCES]
    if rare or len(set(train)) < 2:
        raise DataError(
            f"{name} must have at least two classes of {LEAST_SEQUENCES} training sequences; too "
            f"rare: {rare or sorted(set(train))}"
        )


def _samples(rows: list[Tensor], labels: list[int], steps: int) -> Mapping[str, Tensor]:
    features = torch.zeros(len(rows), steps, rows[0].shape[1])
    for place, row in enumerate(rows):
        features[place, : len(row)] = row
    lengths = torch.tensor([len(row) for row in rows])
    return {"features": features, "lengths": lengths, LABELS: torch.tensor(labels)}
