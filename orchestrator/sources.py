"""Who gave which key of a configuration.

So the arguments that a default gave one class are not handed to another. A source is a file, the
command line, or a mapping from Python. They are laid over one another in order. One that names
another `_target_` than those before takes the place of their recipe, with all its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_modules.recipe import TARGET

Path = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Plain data from `name`; `parent` is the source whose defaults list took it in."""

    name: str
    content: Mapping[str, Any]
    parent: str = ""


@dataclass
class Layered:
    """The sources laid over one another; each leaf is (value, number of its source)."""

    sources: Sequence[Source]
    tree: dict[str, Any] = field(default_factory=dict)
    replaced: list[Path] = field(default_factory=list)
    """Where a recipe took the place of another one."""

    def __post_init__(self) -> None:
        for number, source in enumerate(self.sources):
            self._lay(self.tree, source.content, number, ())

    def giver(self, *path: str) -> str:
        """The name of the source of a leaf; "" where there is none."""
        leaf: Any = self.tree
        for name in path:
            leaf = leaf.get(name) if isinstance(leaf, dict) else None
        if not isinstance(leaf, tuple):
            return ""
        _, number = leaf
        return self.sources[number].name

    def foreign(self, config: Mapping[str, Any]) -> Iterable[Path]:
        """Keys of a merged configuration that belong to a class which another one has replaced."""
        for path in self.replaced:
            yield from _missing(_at(config, path), _at(self.tree, path), path)

    def _lay(
        self, tree: dict[str, Any], content: Mapping[str, Any], number: int, path: Path
    ) -> None:
        if self._is_another(tree, content, number):
            _keep(tree, {number, *self._taken_in_by(number)})
            self.replaced.append(path)
        for key, value in content.items():
            if not isinstance(value, Mapping):
                tree[key] = (value, number)
                continue
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
            self._lay(tree[key], value, number, (*path, key))

    def _is_another(self, tree: dict[str, Any], content: Mapping[str, Any], number: int) -> bool:
        before = tree.get(TARGET)
        if not isinstance(before, tuple) or TARGET not in content:
            return False
        return before[0] != content[TARGET] and before[1] not in self._taken_in_by(number)

    def _taken_in_by(self, number: int) -> set[int]:
        """Files that this one's defaults list names, directly or not.

        It builds on them on purpose.
        """
        parents = {source.name: source.parent for source in self.sources}
        name = self.sources[number].name
        numbers = set()
        for other, source in enumerate(self.sources):
            if name in _ancestors(source.name, parents):
                numbers.add(other)
        return numbers


def _ancestors(name: str, parents: Mapping[str, str]) -> set[str]:
    ancestors: set[str] = set()
    parent = parents.get(name, "")
    while parent and parent not in ancestors:
        ancestors.add(parent)
        parent = parents.get(parent, "")
    return ancestors


def _keep(tree: dict[str, Any], numbers: set[int]) -> None:
    """Keeps the leaves of these sources only."""
    for key, value in list(tree.items()):
        if isinstance(value, dict):
            _keep(value, numbers)
        foreign = isinstance(value, tuple) and value[1] not in numbers
        if foreign or value == {}:
            del tree[key]


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _missing(config: Any, tree: Any, path: Path) -> Iterable[Path]:
    if not isinstance(config, Mapping) or not isinstance(tree, Mapping):
        return
    for key, value in config.items():
        if key not in tree:
            yield (*path, key)
        else:
            yield from _missing(value, tree[key], (*path, key))
