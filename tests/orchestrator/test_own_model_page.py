"""docs/own-model.md: its files are written into an empty folder, its commands executed there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.results.rows import ConfirmedRow, read_csv
from tests.forked import output_of

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


def words_of(command: str, folder: Path) -> list[str]:
    """What follows `python` in a command, as the shell reads it."""
    tell = "python() { printf '%s\\0' \"$@\"; }\n"
    shell = ["bash", "-ec", tell + command]
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def said(command: str, folder: Path) -> str:
    """What a command prints. It must succeed."""
    return output_of(words_of(command, folder), folder)


def test_what_the_user_has_does_not_know_of_this_project(tmp_path: Path) -> None:
    commands = written((ROOT / "docs/own-model.md").read_text(), tmp_path)
    assert len(commands) == 6
    for name in ("mine.py", "train.py", "conf/experiment/mine.yaml"):
        text = (tmp_path / name).read_text()
        assert "orchestrator" not in text
        assert "lightning_modules" not in text


@pytest.mark.slow
@pytest.mark.family
def test_every_command_of_the_page_works_in_an_empty_folder(tmp_path: Path) -> None:
    page = (ROOT / "docs/own-model.md").read_text()
    train, check, inspect, search, use, export = written(page, tmp_path)
    said(train, tmp_path)
    shown = said(check, tmp_path)
    assert "the quality is val_cost, smaller is better" in shown
    assert "test data go through test_step" in shown
    assert "net.image.0" in said(inspect, tmp_path)
    said(search, tmp_path)
    front = read_csv(tmp_path / "runs/mine/front.csv", ConfirmedRow)
    dense = read_csv(tmp_path / "runs/mine/baselines.csv", ConfirmedRow)[0]
    assert front
    # the best of the front is about as good as the dense model, and less is better
    assert min(row.test_mean for row in front) < 1.5 * dense.test_mean
    shown = said(use, tmp_path)
    assert "TwoTower ['log_scale', 'value']" in shown
    share = re.search(r"LitTwoTower: (\d+)% of the parameters", shown)
    assert share is not None
    assert int(share[1]) < 100
    said(export, tmp_path)
    exports = json.loads((tmp_path / "runs/mine/best/exports.json").read_text())
    assert [entry["reason"] for entry in exports] == ["", "", ""]
