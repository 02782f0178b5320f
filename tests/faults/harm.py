"""What is done to files that are read later, and the study whose files they are."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STUDY = [
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=1",
    "phases.finetune.round_steps=2",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "phases.confirm.baselines=[]",
    "search.chain.targets=3",
    "threads=1",
    "study.n_trials=3",
    "stopping=never",
    "tracking=none",
]
DEEP = "[" * 100_000 + "]" * 100_000


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def header(size: int, content: bytes = b"{}") -> bytes:
    return struct.pack("<Q", size) + content


def with_header(shapes: dict[str, list[int]], data: int = 0) -> bytes:
    """A file that claims these shapes."""
    claimed = {
        name: {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [0, 4 * int(np.prod(shape, dtype=object))],
        }
        for name, shape in shapes.items()
    }
    content = json.dumps(claimed).encode()
    return header(len(content), content) + b"\0" * data


def flip(path: Path) -> None:
    """Another last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change(path: Path, how: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    found = how(document)
    path.write_text(json.dumps(document if found is None else found))
