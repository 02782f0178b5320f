"""The pages: their commands compose, their reference is that of conf/, and they make a site."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import settings as schema
from orchestrator.__main__ import main

ROOT = Path(__file__).parents[2]
OWN = "docs/own-model.md"
"""Executed by a test of its own, with the files that it asks for."""
HISTORY = ("docs/decisions.md", "docs/negative-results.md")
ELSEWHERE = ("/home/me", "http://...", "launcher", "hydra.searchpath")
"""What needs a folder, a server or a package that only a reader has."""


def pages() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    left_out = {ROOT / name for name in (OWN, *HISTORY)}
    return [path for path in found if path not in left_out]


def commands(path: Path) -> list[list[str]]:
    """The words of the page's commands, in their order."""
    found = []
    text = path.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if not line.startswith("python -m orchestrator"):
            continue
        if any(part in line for part in ELSEWHERE):
            continue
        line = line.partition(" #")[0].replace("$DB", "sqlite:///s.db")
        found.append(shlex.split(line)[3:])
    return found


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each command composes; no job runs."""
    seen: list[dict[str, Any]] = []

    def load(config: dict[str, Any], command: str | None = None) -> Any:
        seen.append(config)
        return SimpleNamespace(job=SimpleNamespace(build=lambda settings: None, target=""))

    monkeypatch.setattr(schema, "load", load)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.slow
@pytest.mark.family
def test_every_command_is_taken_and_of_one_name_a_page_has_one_search(
    composed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []
    for path in pages():
        for words in commands(path):
            before = len(composed)
            assert main(words) == 0, (path.name, words)
            if not any(word.startswith("job=") for word in words):
                searches += [(path.name, config) for config in composed[before:]]
    monkeypatch.undo()
    for config in composed:
        schema.load(config)
    assert len(searches) > 30
    identities: dict[tuple[str, str], Any] = {}
    for page, config in searches:
        settings = schema.load(config).with_depth(False)
        known = identities.setdefault((page, settings.study.name), settings.identity())
        assert known == settings.identity(), (page, settings.study.name)


def test_the_reference_is_that_of_the_configuration() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys; sys.path.insert(0, 'docs'); from make_reference import page, PAGE; "
                "sys.exit(page() != PAGE.read_text())"
            ),
        ],
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, "run python docs/make_reference.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs")
def test_the_pages_make_a_site_that_asks_for_no_address(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        for marker in ('src="http', "@import", 'rel="stylesheet" href="http'):
            assert marker not in page.read_text()


def test_the_readme_fits_on_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_every_decision_is_in_the_index() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text()
    index, *_ = text.split("\n# ", 2)[1:]
    listed = re.findall(r"(?m)^- \[(.+?)\]\(#", index)
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert listed == headings
