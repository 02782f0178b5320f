"""docs/own-model.md: its files are written into an empty folder, its commands executed there.

They run with the project as it is installed from its wheel, not with the checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.results.rows import ConfirmedRow, read_csv

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(\w+) (file=(\S+)|run)\n(.*?)```", re.DOTALL)


def written(text: str, folder: Path) -> list[str]:
    """The page's commands in turn, after its files were written."""
    commands = []
    for _, kind, name, content in BLOCK.findall(text):
        content = content.replace("/home/me", str(folder))
        if kind == "run":
            commands.append(content)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
    return commands


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages; what they need comes from where the tests run."""
    source = tmp_path_factory.mktemp("source")
    for name in ("conf", "orchestrator", "lightning_modules"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def said(command: str, folder: Path, installed: Path) -> str:
    """What a command prints. It must succeed."""
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env={**os.environ, "PATH": python, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_what_the_user_has_does_not_know_of_this_project(tmp_path: Path) -> None:
    commands = written((ROOT / "docs/own-model.md").read_text(), tmp_path)
    assert len(commands) == 6
    for name in ("mine.py", "train.py", "conf/experiment/mine.yaml"):
        text = (tmp_path / name).read_text()
        assert "orchestrator" not in text
        assert "lightning_modules" not in text


@pytest.mark.slow
@pytest.mark.family
@pytest.mark.timeout(900)
def test_every_command_of_the_page_works_in_an_empty_folder(
    tmp_path: Path, installed: Path
) -> None:
    page = (ROOT / "docs/own-model.md").read_text()
    train, check, inspect, search, use, export = written(page, tmp_path)
    said(train, tmp_path, installed)
    shown = said(check, tmp_path, installed)
    assert "the quality is val_cost, smaller is better" in shown
    assert "test data go through test_step" in shown
    assert "net.image.0" in said(inspect, tmp_path, installed)
    said(search, tmp_path, installed)
    front = read_csv(tmp_path / "runs/mine/front.csv", ConfirmedRow)
    dense = read_csv(tmp_path / "runs/mine/baselines.csv", ConfirmedRow)[0]
    assert front
    # the best of the front is about as good as the dense model, and less is better
    assert min(row.test_mean for row in front) < 1.5 * dense.test_mean
    shown = said(use, tmp_path, installed)
    assert "TwoTower ['log_scale', 'value']" in shown
    share = re.search(r"LitTwoTower: (\d+)% of the parameters", shown)
    assert share is not None
    assert int(share[1]) < 100
    said(export, tmp_path, installed)
    exports = json.loads((tmp_path / "runs/mine/best/exports.json").read_text())
    assert [entry["reason"] for entry in exports] == ["", "", ""]
