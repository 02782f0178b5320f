"""The documentation of packages that are installed anyway, as a set of labelled texts."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DOCUMENTED = ("numpy", "scipy", "sklearn", "torch")
"""Packages that this project needs; the place of each is its class."""
DOCUMENTS = 1000
"""Most docstrings of a package."""
SHORTEST = 120
"""Characters of the shortest docstring that is taken."""
TESTS = ("tests", "test", "testing")
"""Folders that are not read."""
DOCSTRING = re.compile(
    r'^( *)(?:def|class) [a-zA-Z]\w*(?:\([^"#]*?\))?[^"#\n]*:\n\1 +r?"""(.*?)"""',
    re.MULTILINE | re.DOTALL,
)
"""The docstring of a public function or class; to parse the sources takes twenty times as long."""


@cache
def documents() -> tuple[tuple[str, str], ...]:
    """(docstring, package) of functions and classes, without repetitions.

    The sources are read, and nothing is imported. Files come in the order of the digests of their
    paths, so that the first `DOCUMENTS` docstrings of a package are from all of its parts. The same
    versions of the packages give the same documents.
    """
    labelled = []
    for package in DOCUMENTED:
        labelled += [(text, package) for text in _docstrings(package)]
    return tuple(labelled)


def _docstrings(package: str) -> list[str]:
    texts: dict[str, None] = {}
    for file in _sources(package):
        for text in _in_file(file):
            texts.setdefault(text)
            if len(texts) == DOCUMENTS:
                return list(texts)
    return list(texts)


def _sources(package: str) -> list[Path]:
    """The package's modules in an order that mixes its folders."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations
    root = Path(next(iter(folders or ())))
    names = []
    for file in root.rglob("*.py"):
        path = file.relative_to(root)
        if not set(path.parts) & set(TESTS):
            names.append(path.as_posix())
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    return [root / name for name in names]


def _in_file(file: Path) -> Iterator[str]:
    """Docstrings of what is public in a module, as far as the pattern finds them."""
    for found in DOCSTRING.finditer(file.read_text(encoding="utf-8")):
        text = inspect.cleandoc(found[2])
        if len(text) >= SHORTEST:
            yield text
