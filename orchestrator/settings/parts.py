"""What all settings are made of: frozen, strict models, and recipes as their leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe


def _recipe(value: Any) -> Recipe:
    if isinstance(value, Recipe):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"needs a mapping with `_target_`, the dotted path of a callable; got {value!r}"
        )
    try:
        return Recipe.from_json(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _optimizer(value: Any) -> Recipe:
    """The word `own` stands for the optimizer of the task."""
    return Recipe(value) if value == "own" else _recipe(value)


AnyRecipe = Annotated[Recipe, BeforeValidator(_recipe)]
OptimizerRecipe = Annotated[Recipe, BeforeValidator(_optimizer)]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, strict=False
    )
