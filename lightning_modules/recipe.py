"""A recipe: a callable and its arguments as a plain value, which is what `_target_` in a config
means.

A recipe can be compared, hashed, stored as JSON and sent to another process. Nothing is imported
before `build`. Building runs the named callable, so a recipe must be trusted as code is.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_modules.errors import ConfigError

TARGET = "_target_"
"""The key that makes a mapping a recipe."""
DIGEST_DIGITS = 12
"""Hexadecimal digits of a digest."""


@dataclass(frozen=True)
class Recipe:
    """`target` is a dotted path; `arguments` are plain values, lists, mappings or recipes."""

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *positional: Any, **extra: Any) -> Any:
        """Call the target. Recipes among the arguments are built first; `extra` overrides them.

        Errors: ConfigError as in `check`.
        """
        function = locate(self.target)
        keywords = {**_built(self.arguments), **extra}
        _check_call(self.target, function, positional, keywords)
        return function(*positional, **keywords)

    def check(self, *positional: Any, **extra: Any) -> None:
        """Errors: ConfigError if `build` could not call the target with these. Calls nothing."""
        for recipe in _recipes_in(self.arguments):
            recipe.check()
        keywords = {**self.arguments, **extra}
        _check_call(self.target, locate(self.target), positional, keywords)

    def without(self, *names: str) -> Recipe:
        """The recipe without the arguments of these names."""
        rest = {key: value for key, value in self.arguments.items() if key not in names}
        return Recipe(self.target, rest)

    def to_json(self) -> dict[str, Any]:
        return {TARGET: self.target, **_plain(self.arguments)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Errors: ConfigError without a `_target_`."""
        if not isinstance(data.get(TARGET), str):
            raise ConfigError(
                f"a recipe needs `{TARGET}`: the dotted path of a callable; got {dict(data)}"
            )
        arguments = {key: parse(value) for key, value in data.items() if key != TARGET}
        return cls(data[TARGET], arguments)


def parse(value: Any) -> Any:
    """Plain config data with every mapping that has a `_target_`, at any depth, made a recipe."""
    if isinstance(value, Mapping) and TARGET in value:
        return Recipe.from_json(value)
    return _each(value, parse, (list, tuple))


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that name a value made of recipes and plain data.

    They are the first of the SHA-256 of its sorted JSON.
    """
    text = json.dumps(_plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def nearest(name: str, known: list[str]) -> str:
    """`; nearest: a, b` for a message about an unknown name; empty if no known name is near."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""


def locate(path: str) -> Any:
    """The object at a dotted path. Errors: ConfigError that names the first missing part."""
    module, attributes = _imported(path)
    value: Any = importlib.import_module(module)
    for part in attributes:
        if not hasattr(value, part):
            raise ConfigError(f"'{path}': {module} has no '{part}'{nearest(part, dir(value))}")
        value = getattr(value, part)
    return value


def _imported(path: str) -> tuple[str, list[str]]:
    """The longest part of a dotted path that imports as a module, and the names after it."""
    module, _, last = path.rpartition(".")
    attributes = [last]
    while module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not _is_missing(module, error):
                raise ConfigError(
                    f"`{path}` needs the package '{error.name}'; install it with pip"
                ) from error
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
        else:
            return module, attributes
    raise ConfigError(
        f"`{TARGET}` must be the dotted path of something importable; no module holds '{path}'"
    )


def _is_missing(module: str, error: ModuleNotFoundError) -> bool:
    """Whether the module itself, or a package around it, is missing, and not what it imports."""
    if error.name is None:
        return False
    return module == error.name or module.startswith(error.name + ".")


def _built(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.build()
    return _each(value, _built, (list,))


def _recipes_in(value: Any) -> list[Recipe]:
    if isinstance(value, Recipe):
        return [value]
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, list):
        items = value
    recipes = []
    for item in items:
        recipes += _recipes_in(item)
    return recipes


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.to_json()
    return _each(value, _plain, (list, tuple))


def _each(value: Any, change: Callable[[Any], Any], sequences: tuple[type, ...]) -> Any:
    """`change` of every item of a mapping or a sequence; any other value as it is."""
    if isinstance(value, Mapping):
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, sequences):
        return [change(item) for item in value]
    return value


def _check_call(
    target: str, function: Any, positional: tuple[Any, ...], keywords: Mapping[str, Any]
) -> None:
    """Reports a wrong argument name as the user's error, without a traceback from the callable."""
    if not callable(function):
        raise ConfigError(
            f"`{TARGET}: {target}` must name a callable; it is a {type(function).__name__}"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # builtins without a signature are called as they are
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        known = [name for name in signature.parameters if name not in ("args", "kwargs")]
        raise ConfigError(f"{target}: {error}; its arguments are {', '.join(known)}") from error
