"""torchvision's networks for segmentation and detection by name, from the command line to a file
that runs without this project.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import orchestrator
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, read_csv

TINY = [
    "model=torchvision",
    "model.num_classes=11",
    "data.channels=3",
    "data.size=64",
    "data.images=16",
    "data.batch_size=4",
    "study.name=tiny",
    "study.n_trials=2",
    "search.chain.targets=2",
    "phases.train.epochs=1",
    "phases.finetune.round_steps=2",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=1",
    "phases.confirm.baselines=[]",
    "stopping=never",
    "threads=1",
    "tracking=none",
]
SEGMENTATION = ["+experiment=segmentation"]
DETECTION = ["+experiment=detection", "task=torchvision_detection"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "name", "output"),
    [
        (SEGMENTATION, "lraspp_mobilenet_v3_large", "out"),
        (DETECTION, "ssdlite320_mobilenet_v3_large", "cls_logits"),
    ],
)
def test_a_network_by_name_is_pruned_loaded_and_exported(
    experiment: list[str], name: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*experiment, *TINY, f"model.name={name}"]
    assert main(words) == 0
    (row, *_) = read_csv("runs/tiny/front.csv", ConfirmedRow)
    images = torch.zeros(2, 3, 64, 64)
    with torch.no_grad():
        assert len(orchestrator.load_pruned(row.path)(images)[output]) == 2
    chosen = ["select=smallest", "select.max_drop=1.0", "job.formats=[onnx]"]
    assert main([*words, "job=export", *chosen]) == 0
    (exported,) = json.loads(Path("runs/tiny/best/exports.json").read_text())
    assert exported["reason"] == ""
