"""What every format of export must do: its file gives what the model gives, checked first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.inputs import Inputs
from orchestrator.export.formats import EXPORT_FORMATS, Format
from orchestrator.load import load_exported
from orchestrator.search.plans.finished import save_plan

CLOSE = 0.05
"""Largest difference of outputs, as a share of their spread: int8 rounds."""


@pytest.fixture(scope="module", params=sorted(EXPORT_FORMATS))
def form(request: pytest.FixtureRequest) -> Format:
    entry = EXPORT_FORMATS[request.param]
    try:
        entry.require()
    except ConfigError as missing:
        pytest.skip(str(missing))
    return entry


@pytest.mark.slow
def test_an_exported_model_gives_what_the_model_gives(form: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallResNet(10, width=8).eval()
    batches = [Inputs((torch.randn(16, 1, 8, 8),)) for _ in range(4)]
    written = form.write(model, batches, tmp_path / form.file)
    loaded = form.load(tmp_path / form.file)
    inputs = batches[0].args[0]
    with torch.no_grad():
        expected = model(inputs)
    assert torch.equal(written(inputs), loaded(inputs))
    spread = float(expected.max() - expected.min())
    assert float((loaded(inputs) - expected).abs().max()) <= CLOSE * spread
    again = form.write(model, batches, tmp_path / "again")
    assert torch.equal(again(inputs), loaded(inputs))


def test_an_exported_file_is_known_by_its_digest(form: Format, tmp_path: Path) -> None:
    (tmp_path / form.file).write_bytes(b"a file")
    save_plan(tmp_path, {"trial": 0}, torch.nn.Linear(1, 1))
    assert list(json.loads((tmp_path / "plan.json").read_text())["exports"]) == [form.file]
    (tmp_path / form.file).write_bytes(b"another")
    with pytest.raises(DataError, match=rf"{form.file} was changed or damaged"):
        load_exported(tmp_path, form.name)


def test_a_format_that_there_is_not_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a format must be one of .*; got 'int9'; nearest: int8"):
        load_exported(tmp_path, "int9")


def test_files_of_formats_differ() -> None:
    files = [entry.file for entry in EXPORT_FORMATS.values()]
    assert len(set(files)) == len(files)
