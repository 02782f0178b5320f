"""Which callables a file may name.

These are those of this program, and those that the configuration names itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_modules.errors import DataError
from lightning_modules.recipe import TARGET, locate

OWN_MODULES = "lightning_modules.pruning."
"""The package of criteria and regrowth, which a plan's method is made of where it is ours.

Importing it runs nothing else.
"""


def targets(tree: Any) -> set[str]:
    """Every `_target_` in plain data, at any depth."""
    names: set[str] = set()
    if isinstance(tree, Mapping):
        if TARGET in tree:
            names.add(str(tree[TARGET]))
        for value in tree.values():
            names |= targets(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            names |= targets(value)
    return names


def require_own(named: Iterable[str], who: str) -> None:
    """Checks that targets are defined in the pruning core; imports nothing else to see it.

    Errors: DataError for a target that is not.
    """
    for target in sorted(named):
        if not _is_own(target):
            raise DataError(
                "a plan may name criteria of this program, or those that the configuration names; "
                f"{who} names {target}: give the method it was made with (method=...), if you "
                "trust it like code"
            )


def _is_own(target: str) -> bool:
    if not target.startswith(OWN_MODULES):
        return False
    # a path may lead through a module of ours to one that it imports
    module = str(getattr(locate(target), "__module__", ""))
    return module.startswith(OWN_MODULES)
