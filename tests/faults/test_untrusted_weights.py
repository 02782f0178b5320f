"""Weights on disk that are damaged, made up or hostile: refused by name, or made anew; nothing in
them runs.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_modules.errors import DataError, UserError
from lightning_modules.models import SmallResNet
from orchestrator.__main__ import main
from orchestrator.load import load_pruned
from orchestrator.stored import check_shapes
from tests.faults.harm import DEEP, STUDY, Bomb, change, flip, header, with_header
from tests.search.problems import Prepared, lab_of

# --- checkpoints


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.ckpt", "bomb.pkl"])
def test_a_pickle_that_runs_code_is_refused_unread(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"conv1.weight": Bomb(tmp_path / "marker")}}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, name)
    assert main([*STUDY, f"phases.train.checkpoint={name}"]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "Traceback" not in said
    assert not (tmp_path / "marker").exists()
    with pytest.raises(UserError):
        load_pruned(tmp_path)


def packed(path: Path) -> None:
    """A checkpoint whose entries are compressed: a thousandth of what it unpacks to."""
    torch.save({"conv1.weight": torch.zeros(1_000_000)}, path.with_suffix(".plain"))
    with (
        zipfile.ZipFile(path.with_suffix(".plain")) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.namelist():
            small.writestr(entry, plain.read(entry))


def large(path: Path) -> None:
    torch.save(
        {
            **SmallResNet(10, width=8).state_dict(),
            "conv1.weight": torch.zeros(1).expand(2**20, 2**20),
        },
        path,
    )


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.safetensors", lambda p: p.write_bytes(b""), "whole safetensors file"),
        (
            "b.safetensors",
            lambda p: p.write_bytes(header(2**60)),
            r"its header has 1152921504606846976 bytes",
        ),
        (
            "c.safetensors",
            lambda p: p.write_bytes(with_header({"conv1.weight": [2**40]})),
            "whole safetensors file",
        ),
        (
            "d.safetensors",
            lambda p: p.write_bytes(with_header({"other": [2]}, 8)),
            r"only the model has bn1.bias",
        ),
        (
            "e.safetensors",
            lambda p: save_file({"conv1.weight": torch.zeros(3)}, p),
            r"only the model has bn1.bias",
        ),
        ("f.pt", packed, "has compressed entries"),
        ("g.pt", large, "size mismatch for conv1.weight"),
        ("h.pt", lambda p: torch.save([1, 2], p), "must hold a state dict"),
        ("i.pt", lambda p: p.mkdir(), "must be a file"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as refused:
        lab_of(tmp_path, f"phases.train.checkpoint={tmp_path / name}")
    assert name in str(refused.value)


def test_shapes_are_seen_before_tensors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    monkeypatch.setattr("safetensors.torch.load", None)
    with pytest.raises(DataError, match=r"\[1000\] in the file, \[3\] in the model"):
        check_shapes(path, {"a": torch.zeros(3)}, "take another")


# --- the dense baseline

BRIEF = ["phases.train.epochs=1", "phases.train.rewind_epoch=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    """Where a dense model was trained, not to be touched, and its laboratory."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, Prepared(folder, *BRIEF)


@pytest.fixture
def baselines(trained: tuple[Path, Prepared], tmp_path: Path) -> Path:
    """A copy of its baselines."""
    return Path(shutil.copytree(trained[0] / "baselines", tmp_path / "baselines"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: flip(folder / "weights.safetensors"),
        lambda folder: (folder / "weights.safetensors").write_bytes(b"x"),
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: (folder / "dense.json").write_text("{"),
        lambda folder: (folder / "dense.json").write_text(DEEP),
        lambda folder: change(
            folder / "dense.json", lambda d: {**d, "validation": {"accuracy": "high"}}
        ),
        lambda folder: change(folder / "dense.json", lambda d: [1]),
        lambda folder: flip(folder / "rewind.safetensors"),
    ],
)
def test_a_damaged_baseline_is_named_and_trained_anew(
    harm: Callable[[Path], None],
    trained: tuple[Path, Prepared],
    baselines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder,) = (path for path in baselines.iterdir() if path.is_dir())
    before = (folder / "weights.safetensors").read_bytes()
    harm(folder)
    capsys.readouterr()
    again = Prepared(tmp_path, *BRIEF)
    assert f"{folder} is damaged and is made anew" in capsys.readouterr().err
    assert (folder / "weights.safetensors").read_bytes() == before
    assert again.facts.dense_metrics == trained[1].facts.dense_metrics


def test_a_baseline_of_an_older_version_has_no_digest_and_loads(
    baselines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = baselines.glob("*/dense.json")
    change(record, lambda d: {name: value for name, value in d.items() if name != "sha256"})
    capsys.readouterr()
    lab_of(tmp_path, *BRIEF)
    assert "damaged" not in capsys.readouterr().err
