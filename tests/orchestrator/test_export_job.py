"""`job=export`: a model of a finished study, in every format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import orchestrator
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, write_csv

WORDS = [
    "+experiment=digits_small",
    "model.width=4",
    "tracking=none",
    "threads=1",
    "phases.train.epochs=3",
    "phases.finetune.round_steps=4",
    "phases.confirm.baselines=[uniform]",
    "search.chain.targets=3",
    "study.name=small",
    "study.n_trials=4",
]
EXPORT = [*WORDS, "job=export", "select=max_quality"]
PT2 = """
import sys, numpy, torch
network = torch.export.load(sys.argv[1]).module()
(outputs,) = network(torch.from_numpy(numpy.load(sys.argv[2])))
numpy.save(sys.argv[3], outputs.detach().numpy())
assert "orchestrator" not in sys.modules
"""
ONNX = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
(outputs,) = session.run(None, {"input": numpy.load(sys.argv[2])})
numpy.save(sys.argv[3], outputs)
assert "torch" not in sys.modules
"""


def test_a_study_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(EXPORT) == 2
    assert "takes a model of a finished study" in capsys.readouterr().err
    assert main([*EXPORT, "job.formats=[pt3]"]) == 2
    assert "got 'pt3'; nearest: pt2" in capsys.readouterr().err
    for opset in ("17", "999", "new"):
        assert main([*EXPORT, f"job.opset={opset}"]) == 2
        assert "job.opset must be a whole number from 18" in capsys.readouterr().err


def test_an_empty_front_is_told_and_not_chosen_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/small")
    write_csv(folder / "front.csv", [], ConfirmedRow)
    write_csv(folder / "baselines.csv", [ConfirmedRow("dense", None, 0.9, 0.0, 2)], ConfirmedRow)
    assert main(EXPORT) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    (folder / "config.yaml").write_text("{}")
    assert main(EXPORT) == 2
    assert "is empty: no model was confirmed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.family
def test_the_chosen_model_runs_where_there_is_no_orchestrator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(WORDS) == 0
    assert main([*EXPORT, "select.max_flops_ratio=1e-9"]) == 2
    assert "the nearest is trial" in capsys.readouterr().err
    assert main([*EXPORT, "model.width=8"]) == 2
    assert "model.width was 4, now 8" in capsys.readouterr().err
    assert main(EXPORT) == 0
    best = Path("runs/small/best")
    card = (best / "MODEL_CARD.md").read_text()
    assert "## Who pays" in card
    assert "| class | dense | change |" in card
    assert "select=max_quality" in card
    exports = {entry["format"]: entry for entry in json.loads((best / "exports.json").read_text())}
    assert {name: entry["reason"] for name, entry in exports.items()} == {
        "pt2": "",
        "onnx": "",
        "int8": "",
    }
    assert exports["pt2"]["metrics"]["accuracy"] == exports["onnx"]["metrics"]["accuracy"]
    inputs = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    np.save("inputs.npy", inputs)
    model = orchestrator.load_pruned(best)
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs)).numpy()
    for name, program in (("pt2", PT2), ("onnx", ONNX)):
        file = best / exports[name]["file"]
        command = [sys.executable, "-c", program, str(file), "inputs.npy", "outputs.npy"]
        subprocess.run(command, check=True)
        assert np.load("outputs.npy") == pytest.approx(expected, abs=1e-4)
    loaded = orchestrator.load_exported(best, "int8")
    assert loaded(torch.from_numpy(inputs)).shape == (5, 10)
