"""The name of a study that was given none.

It tells what was asked for, so that another search has another name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from orchestrator.redact import redact

LONGEST = 100
"""Most characters of a name: names of folders and of database rows have limits."""
_SAME_SEARCH = (
    "study",
    "workers",
    "device",
    "threads",
    "memory_format",
    "quiet",
    "job",
    "select",
    "tracking",
    "phases.confirm",
    "hydra",
    "experiment",
)
"""Keys that do not make another search; an experiment names its study itself."""


def study_name(base: str, asked: Iterable[tuple[str, str]]) -> str:
    """`base`, then each (key, value) that makes it another search.

    An example is digits_small-method_taylor-method.scope_global. The order of the keys does not
    matter; a group comes before single values. A long name is cut, and ends with eight hex digits
    of the whole.
    """
    parts = [_part(key, value) for key, value in sorted(asked, key=_order) if not _neutral(key)]
    whole = "-".join([base, *parts])
    if not parts or len(whole) <= LONGEST:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    short = whole[: LONGEST - 9].rstrip("._-")
    return f"{short}-{digest}"


def _neutral(key: str) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _SAME_SEARCH)


def _order(pair: tuple[str, str]) -> tuple[bool, tuple[str, str]]:
    return "." in pair[0], pair


def _part(key: str, value: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", key)
    words = re.findall(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", redact(value))
    if not words:
        return name
    return f"{name}_{'.'.join(words)}"
