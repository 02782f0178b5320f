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
    by_words: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    searches = []
    for path in pages():
        for words in commands(path):
            # pages repeat one another
            if tuple(words) not in by_words:
                before = len(composed)
                assert main(words) == 0, (path.name, words)
                by_words[tuple(words)] = composed[before:]
            if not any(word.startswith("job=") for word in words):
                searches.append((path.name, tuple(words)))
    monkeypatch.undo()
    assert len(searches) > 30
    loaded = {words: [schema.load(config) for config in by_words[words]] for words in by_words}
    identities: dict[tuple[str, str], Any] = {}
    for page, words in searches:
        for given in loaded[words]:
            identity = given.with_depth(False).identity()
            known = identities.setdefault((page, given.study.name), identity)
            assert known == identity, (page, given.study.name)


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
