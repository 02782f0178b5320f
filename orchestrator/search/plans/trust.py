"""Which callables a file may name: those of this program, and those that the configuration names
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_modules.errors import DataError
from lightning_modules.recipe import TARGET, locate

OWN_MODULES = "lightning_modules.pruning."
"""Criteria, regrowth: what a plan's method is made of where it is ours. Importing it runs nothing
else.
"""


def targets(tree: Any) -> set[str]:
    """Every `_target_` in plain data, at any depth."""
    if isinstance(tree, Mapping):
        here = {str(tree[TARGET])} if TARGET in tree else set()
        return here.union(*map(targets, tree.values()))
    return set().union(*map(targets, tree)) if isinstance(tree, list | tuple) else set()


def require_own(named: Iterable[str], who: str) -> None:
    """Errors: DataError for a target that is not defined in the pruning core; nothing else is
    imported to see it.
    """
    for target in sorted(named):
        # a path may lead through a module of ours to one that it imports
        if not target.startswith(OWN_MODULES) or not str(
            getattr(locate(target), "__module__", "")
        ).startswith(OWN_MODULES):
            raise DataError(
                "a plan may name criteria of this program, or those that the configuration names; "
                f"{who} names "
                f"{target}: give the method it was made with (method=...), if you trust it like "
                "code"
            )
