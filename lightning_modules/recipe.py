"""A callable and its arguments as a plain value: what `_target_` in a config means.

A recipe can be compared, hashed, stored as JSON and carried to another process; nothing is imported before
`build`. Building runs the named callable, so a recipe is to be trusted like code.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_modules.errors import ConfigError

TARGET = "_target_"


@dataclass(frozen=True)
class Recipe:
    """`target` is a dotted path; `arguments` are plain values, lists, mappings, or recipes of their own."""

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *positional: Any, **extra: Any) -> Any:
        """Call the target, with recipes among the arguments built first; `extra` wins over `arguments`."""
        function = locate(self.target)
        keywords = {**{key: _built(value) for key, value in self.arguments.items()}, **extra}
        _check_call(self.target, function, positional, keywords)
        return function(*positional, **keywords)

    def check(self, *positional: Any, **extra: Any) -> None:
        """Errors: ConfigError where `build` could not call the target with these; nothing is called."""
        for value in self.arguments.values():
            for recipe in _recipes_in(value):
                recipe.check()
        _check_call(self.target, locate(self.target), positional, {**self.arguments, **extra})

    def without(self, *names: str) -> Recipe:
        return Recipe(
            self.target, {key: value for key, value in self.arguments.items() if key not in names}
        )

    def to_json(self) -> dict[str, Any]:
        return {
            TARGET: self.target,
            **{key: _plain(value) for key, value in self.arguments.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Errors: ConfigError without a `_target_`."""
        if not isinstance(data.get(TARGET), str):
            raise ConfigError(
                f"a recipe needs `{TARGET}`: the dotted path of a callable; got {dict(data)}"
            )
        rest = {key: parse(value) for key, value in data.items() if key != TARGET}
        return cls(data[TARGET], rest)


def parse(value: Any) -> Any:
    """Plain config data with every mapping that has a `_target_` turned into a recipe, at any depth."""
    if isinstance(value, Mapping):
        return (
            Recipe.from_json(value)
            if TARGET in value
            else {key: parse(item) for key, item in value.items()}
        )
    return [parse(item) for item in value] if isinstance(value, list | tuple) else value


def digest(value: Any) -> str:
    """Twelve hex digits that name a value made of recipes and plain data (SHA-256 of its sorted JSON)."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:12]


def nearest(name: str, known: list[str]) -> str:
    """`; nearest: a, b` for a message about an unknown name, or nothing when no known name is near."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""


def locate(path: str) -> Any:
    """The object at a dotted path. Errors: ConfigError that names the first part that is not there."""
    module, _, rest = path.rpartition(".")
    while module:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not (
                module == error.name or module.startswith(error.name + ".")
            ):
                raise ConfigError(
                    f"`{path}` needs the package '{error.name}'; install it with pip"
                ) from error
            module, _, head = module.rpartition(".")
            rest = f"{head}.{rest}"
    else:
        raise ConfigError(
            f"`{TARGET}` must be the dotted path of something importable; no module holds '{path}'"
        )
    for part in rest.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"'{path}': {module} has no '{part}'{nearest(part, dir(found))}")
        found = getattr(found, part)
    return found


def _built(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.build()
    if isinstance(value, Mapping):
        return {key: _built(item) for key, item in value.items()}
    return [_built(item) for item in value] if isinstance(value, list) else value


def _recipes_in(value: Any) -> list[Recipe]:
    if isinstance(value, Recipe):
        return [value]
    items = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    )
    return [recipe for item in items for recipe in _recipes_in(item)]


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_call(
    target: str, function: Any, positional: tuple[Any, ...], keywords: Mapping[str, Any]
) -> None:
    """A wrong argument name is the user's error, not a traceback from inside the callable."""
    if not callable(function):
        raise ConfigError(
            f"`{TARGET}: {target}` must name a callable; it is a {type(function).__name__}"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        known = [name for name in signature.parameters if name not in ("args", "kwargs")]
        raise ConfigError(f"{target}: {error}; its arguments are {', '.join(known)}") from error
