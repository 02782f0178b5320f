"""Sequences of different lengths from .ts files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from lightning_modules.data import series
from lightning_modules.errors import ConfigError, DataError


def folder_with(folder: Path, lines: list[str]) -> str:
    for part in ("TRAIN", "TEST"):
        (folder / f"Made_{part}.ts").write_text("\n".join(["@problemName Made", *lines]))
    return str(folder)


SEQUENCES = [
    f"{i},1,2{',3' * (i % 2)}:{i},2,4{',6' * (i % 2)}:{'b' if i % 2 else 'a'}" for i in range(12)
]


def test_sequences_are_filled_up_and_standardised_by_the_training_data(tmp_path: Path) -> None:
    data = series("Made", folder_with(tmp_path, ["@data", *SEQUENCES]))
    data.setup()
    assert data.num_classes == 2
    train = data.splits["train"]
    assert train["features"].shape == (9, 4, 2)
    assert train["lengths"].tolist() == [4 if label else 3 for label in train["labels"]]
    inside = torch.arange(4) < train["lengths"][:, None]
    assert (train["features"][~inside] == 0).all()
    seen = train["features"][inside]
    assert seen.mean(0).abs().max() < 1e-6
    assert torch.allclose(seen.std(0), torch.ones(2))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (SEQUENCES, r"must have sequences after a line @data; it has none"),
        (["@data", "1,2:3:a"], r"the same number of steps, all numbers; line 3: "),
        (["@data", "1,x:3,4:a"], r"all numbers; line 3: .*'x'"),
        (["@data", "1,nan:3,4:a"], r"finite numbers and a class; line 3 has others"),
        (["@data", "1,2:a", "1,2:3,4:a"], r"must have the same number of dimensions"),
        (["@data", *SEQUENCES[:5]], r"4 training sequences; too rare: \['a', 'b'\]"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        series("Made", folder_with(tmp_path, lines)).setup()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.folder must hold Made_TRAIN.ts, in the .ts format"):
        series("Made", str(tmp_path)).setup()


def test_without_aeon_its_sequences_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pruning-orchestrator\[speech\]"):
        series().setup()


@pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="aeon is not installed")
def test_the_speech_of_aeon() -> None:
    data = series()
    data.setup()
    assert data.num_classes == 9
    assert data.splits["test"]["features"].shape == (370, 29, 12)
