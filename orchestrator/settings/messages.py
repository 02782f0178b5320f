"""What is wrong with a configuration, in a line for each problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from lightning_modules.recipe import nearest
from orchestrator.settings.deleted import instead

_TYPES = ("literal[", "constrained-")
"""How pydantic names the types of a value that may be of several, behind its path."""


def messages(problems: Iterable[Any], root: type[BaseModel]) -> list[str]:
    """A line for each problem; where a value may be of several types, one for all of them.

    `root` is the schema of the whole configuration, whose names the nearest are sought among.
    """
    lines: dict[tuple[Any, ...], str] = {}
    for problem in problems:
        path = problem["loc"] or ("",)
        if not str(path[-1]).startswith(_TYPES):
            lines[problem["loc"]] = _message(problem, root)
            continue
        parent = tuple(path[:-1])
        if parent in lines:
            text, got, value = lines[parent].rpartition("; got ")
            expected = problem["msg"].removeprefix("Input should be ")
            lines[parent] = f"{text}, or {expected}{got}{value}"
        else:
            lines[parent] = _message({**problem, "loc": parent}, root)
    return list(lines.values())


def _message(problem: Any, root: type[BaseModel]) -> str:
    where = ".".join([str(part) for part in problem["loc"]])
    if problem["type"] == "extra_forbidden":
        replacement = instead(where)
        if replacement:
            return f"{where} is not a setting any more: {replacement}"
        *section, key = problem["loc"]
        return f"{where} is not a setting{nearest(str(key), _known(root, tuple(section)))}"
    text = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    shown = "" if isinstance(value, Mapping | BaseModel) else f"; got {value!r}"
    return f"{where}: {text}{shown}" if where else text


def _known(root: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Names of the settings in the section at this path."""
    part: Any = root
    for name in path:
        fields = getattr(part, "model_fields", None)
        part = get_args(part)[-1] if fields is None and get_args(part) else (fields or {}).get(name)
        part = getattr(part, "annotation", part)
    return list(getattr(part, "model_fields", ()))
