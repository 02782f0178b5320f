"""What every format of export must do: its file gives what the model gives, checked first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.inputs import Inputs
from orchestrator.export.formats import EXPORT_FORMATS, Format
from orchestrator.export.parity import Comparison
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


@pytest.mark.slow
def test_a_format_of_onnx_has_the_opset_that_is_asked_for(form: Format, tmp_path: Path) -> None:
    if "opset" not in form.options:
        pytest.skip("its file has no opset")
    batches = [Inputs((torch.randn(4, 3),))]
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for opset in (18, 21):
        asked = form.with_options({"opset": opset, "another": 1})
        exported = Comparison(model, batches, batches, lambda network: {}).export(asked, tmp_path)
        assert exported.reason == ""
        assert _opset(tmp_path / form.file) == opset


def _opset(path: Path) -> int:
    onnx = pytest.importorskip("onnx")
    (version,) = [entry.version for entry in onnx.load(path).opset_import if not entry.domain]
    return int(version)


def test_another_opset_than_was_asked_for_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    own = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])

    def export(model: object, inputs: object, path: str, **options: object) -> None:
        onnx.save(own, path)

    monkeypatch.setattr("torch.onnx.export", export)
    form = EXPORT_FORMATS["onnx"].with_options({"opset": 19})
    batches = [Inputs((torch.randn(4, 3),))]
    exported = Comparison(nn.Linear(3, 2), batches, batches, lambda network: {}).export(
        form, tmp_path
    )
    assert exported.reason == (
        "the model must export to ONNX opset 19; PyTorch wrote opset 18: give job.opset=18"
    )


class TwoHeads(nn.Module):
    """Tokens and a mask by keyword; a dict with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 3)
        self.second = nn.Linear(6, 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        pooled = (self.embedding(tokens) * mask[..., None]).sum(1)
        return {"first": self.first(pooled), "second": self.second(pooled)}


@pytest.mark.slow
def test_several_inputs_and_outputs_keep_their_order(form: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoHeads().eval()
    batches = []
    for size in (4, 7):  # the batch is free
        mask = (torch.rand(size, 5) > 0.3).float()
        batches.append(Inputs((torch.randint(0, 11, (size, 5)),), {"mask": mask}))
    comparison = Comparison(model, batches, batches, lambda network: {"one": 1.0})
    exported = comparison.export(form, tmp_path)
    assert exported.reason == ""
    assert exported.metrics == {"one": 1.0}
    assert exported.largest_difference <= CLOSE * exported.largest_output
    first, second = batches[1].call(form.load(tmp_path / form.file))
    assert (first.shape, second.shape) == ((7, 3), (7, 2))


class Refused(nn.Module):
    """Its way depends on values: no exporter takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


@pytest.mark.slow
def test_a_model_that_does_not_export_is_reported_with_the_reason(
    form: Format, tmp_path: Path
) -> None:
    batches = [Inputs((torch.randn(4, 4),))]
    exported = Comparison(Refused(), batches, batches, lambda network: {}).export(form, tmp_path)
    assert "must export" in exported.reason
    assert not (tmp_path / form.file).exists()


def test_an_exact_file_that_computes_something_else_is_left_out(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)

    def write(network: nn.Module, inputs: object, path: Path) -> nn.Module:
        path.write_text("a file")
        return network

    def load(path: Path) -> nn.Module:
        return nn.Linear(3, 2)

    wrong = Format(
        "wrong", "model.wrong", lambda: None, write, load, exact=True, engine="pytorch", usage=""
    )
    batches = [Inputs((torch.randn(4, 3),))]
    exported = Comparison(model, batches, batches, lambda network: {}).export(wrong, tmp_path)
    assert "its outputs differ from the model's" in exported.reason
    assert not (tmp_path / wrong.file).exists()


def test_whatever_an_exporter_raises_is_a_reason_and_nothing_more(tmp_path: Path) -> None:
    def write(network: nn.Module, inputs: object, path: Path) -> nn.Module:
        path.write_text("half a file")
        raise KeyError("an operator")

    broken = Format(
        "broken", "model.broken", lambda: None, write, lambda path: nn.ReLU(), True, "pytorch", ""
    )
    batches = [Inputs((torch.randn(4, 3),))]
    comparison = Comparison(nn.Linear(3, 2), batches, batches, lambda network: {})
    assert comparison.export(broken, tmp_path).reason == "KeyError: 'an operator'"
    assert not (tmp_path / broken.file).exists()


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
