"""Texts with a class, and running text: docstrings of installed packages, or the user's files."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from lightning_modules.data.documents import DOCUMENTED, documents
from lightning_modules.data.named import LABELS, Named, Samples
from lightning_modules.data.tables import csv_rows
from lightning_modules.data.tokens import padded, tokenizer
from lightning_modules.errors import ConfigError, DataError

DOCSTRINGS = "docstrings"
"""The source that is embedded."""
TEST_SHARE = 0.25
"""Share of all texts that is test data."""
VALIDATION_SHARE = 0.2
"""Share of the other texts that is validation data."""
LEAST_TEXTS = 10
"""Fewest texts of a class, and fewest blocks of each part of a running text."""
NOT_A_TARGET = -100
"""The label of a position that does not count."""
GIVE_AWAY = re.compile(r"\w*(?:numpy|scipy|sklearn|scikit|torch)\w*|\b(?:np|sp)\b", re.IGNORECASE)
"""What is left out of docstrings: words that contain a package's name, and the names under which
packages are imported.
"""
READ = 800
"""Characters of a docstring that are read; the rest is mostly examples."""


def labelled_texts(
    source: str = DOCSTRINGS,
    columns: Sequence[str] = ("text", "label"),
    tokens: str | int = 2000,
    length: int = 48,
    batch_size: int = 32,
    seed: int = 0,
) -> Named:
    """Texts and their class: docstrings and the package that each is from, or a CSV file.

    `columns` are the file's columns of texts and of classes, of any spelling. A sample is the first
    `length` tokens (`tokens.py`). `seed` makes the split.
    Samples: `input_ids`, `attention_mask` (n, length); `labels` (n,). The classes of docstrings
    are `documents.DOCUMENTED`, those of a file in sorted order.
    Errors: DataError for a file that is missing or not such a table.
    """
    _check_length(length)

    def read() -> dict[str, Samples]:
        texts, labels = _labelled(source, columns)
        everything = np.arange(len(texts))
        rest, test = train_test_split(
            everything, test_size=TEST_SHARE, random_state=seed, stratify=labels
        )
        train, val = train_test_split(
            rest, test_size=VALIDATION_SHARE, random_state=seed, stratify=labels[rest]
        )
        chosen = tokenizer(tokens, [texts[place] for place in train])
        splits = {}
        for name, places in (("train", train), ("val", val), ("test", test)):
            rows = [chosen.encode(texts[place]) for place in places]
            targets = torch.from_numpy(labels[places])
            splits[name] = {**padded(rows, length, chosen.pad), LABELS: targets}
        return splits

    return Named(read, batch_size, seed)


def running_text(
    source: str = DOCSTRINGS,
    characters: int | None = None,
    tokens: str | int = "bytes",
    length: int = 64,
    batch_size: int = 32,
    seed: int = 0,
) -> Named:
    """A text in blocks of `length` tokens (`tokens.py`): docstrings, or a plain text file.

    The first `characters` of it are taken; None takes all. The blocks of validation data, then
    those of test data, are the end of the text. `seed` is the order of docstrings.
    Samples: `input_ids`, `attention_mask`, `labels` (n, length). Labels are the same tokens, and
    -100 where there is none.
    Errors: DataError for a file that is missing, or a text of too few blocks.
    """
    _check_length(length)

    def read() -> dict[str, Samples]:
        text = _running(source, seed)[:characters]
        end = round(len(text) * (1.0 - TEST_SHARE))
        middle = round(end * (1.0 - VALIDATION_SHARE))
        parts = {"train": text[:middle], "val": text[middle:end], "test": text[end:]}
        chosen = tokenizer(tokens, [parts["train"]])
        splits = {}
        for name, part in parts.items():
            ids = chosen.encode(part)
            blocks = [ids[begin : begin + length] for begin in range(0, len(ids), length)]
            _check_blocks(name, len(blocks), length)
            splits[name] = _with_next(padded(blocks, length, chosen.pad))
        return splits

    return Named(read, batch_size, seed)


def _check_length(length: int) -> None:
    if length < 2:
        raise ConfigError(f"data.length must be at least 2 tokens; got {length}")


def _labelled(source: str, columns: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Texts, and the place of the class of each."""
    if source == DOCSTRINGS:
        pairs = documents()
        texts = [GIVE_AWAY.sub(" ", text[:READ]) for text, _ in pairs]
        return texts, np.array([DOCUMENTED.index(package) for _, package in pairs])
    texts, classes = _from_csv(Path(source), columns)
    known, labels, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if len(known) < 2 or counts.min() < LEAST_TEXTS:
        sizes = ", ".join(f"{name}: {count}" for name, count in zip(known, counts, strict=True))
        raise DataError(
            f"data.source must have at least two classes of {LEAST_TEXTS} texts; {source} has "
            f"{sizes or 'none'}"
        )
    return texts, labels


def _from_csv(path: Path, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The two columns of a CSV file."""
    header, rows = csv_rows(path, [DOCSTRINGS])
    missing = [name for name in columns if name not in header]
    if missing or len(columns) != 2:
        raise DataError(
            f"data.columns must be the columns of texts and of classes in {path}; got "
            f"{list(columns)}; it has {', '.join(header)}"
        )
    text, label = (header.index(name) for name in columns)
    return [cells[text] for _, cells in rows], [cells[label].strip() for _, cells in rows]


def _running(source: str, seed: int) -> str:
    if source == DOCSTRINGS:
        texts = [text for text, _ in documents()]
        random.Random(seed).shuffle(texts)
        return "\n\n".join(texts)
    path = Path(source)
    if not path.is_file():
        raise DataError(
            f"data.source must be the path of a text file, or {DOCSTRINGS}; {path} is no file"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be a text in UTF-8; {error}") from error


def _check_blocks(part: str, count: int, length: int) -> None:
    if count < LEAST_TEXTS:
        raise DataError(
            f"each part of a running text must have at least {LEAST_TEXTS} blocks of {length} "
            f"tokens; its {part} data has {count}: a longer text, or a smaller data.length"
        )


def _with_next(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """The samples with their own tokens as labels."""
    is_token = samples["attention_mask"] == 1
    return {**samples, LABELS: torch.where(is_token, samples["input_ids"], NOT_A_TARGET)}
