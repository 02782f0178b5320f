"""Plans that a user gives: thresholds per group in JSON files.

They are tried as trials of kind `user` behind the chain.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.plan import Plan, Thresholds
from lightning_modules.pruning.structure import Structure
from lightning_modules.recipe import nearest
from orchestrator.search.space import SearchContext, Space
from orchestrator.search.space.outline import on_weights
from orchestrator.settings import Settings
from orchestrator.stored import read_json

Levels = dict[str, float]
"""A threshold per group."""


def read_plans(settings: Settings) -> list[Levels]:
    """The thresholds of `search.plans`.

    Errors: ConfigError for what is no mapping from groups to numbers.
    """
    if settings.search.plans and len(settings.method.choices()[0].stages()) > 1:
        raise ConfigError(
            "search.plans has one threshold per group; a method with a second stage (`then`) needs "
            "two"
        )
    return [_read(path) for path in settings.search.plans]


def _read(path: Path) -> Levels:
    rule = (
        'a plan is a JSON file {"group": threshold, ...} with numbers from 0 on, as in '
        "search.plans=[mine.json]"
    )
    try:
        plain = read_json(path, "mend it, or leave it out")
    except DataError as error:
        raise ConfigError(f"{rule}; {error}") from error
    if not isinstance(plain, dict) or not plain:
        raise ConfigError(f"{rule}; {path} holds {reprlib.repr(plain)}")
    levels = {}
    for name, value in plain.items():
        if not _is_threshold(value):
            raise ConfigError(f"{rule}; {path} has {reprlib.repr(value)} for '{name}'")
        levels[name] = float(value)
    return levels


def _is_threshold(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0.0 <= value < float("inf")


def check_plans(settings: Settings, structure: Structure, model: nn.Module) -> None:
    """Checks that the model has the groups of the user's plans.

    Errors: ConfigError, with the nearest names, for groups that the method does not have in this
    model.
    """
    first = settings.method.choices()[0].stages()[0]
    groups = (on_weights(structure, model, first) or structure).groups
    known = [group.name for group in groups]
    for path, thresholds in zip(settings.search.plans, read_plans(settings), strict=True):
        unknown = sorted(set(thresholds) - set(known))
        if unknown:
            raise ConfigError(
                f"{path} names unknown groups {unknown}{nearest(unknown[0], known)}; the model has "
                f"{known}; job=inspect lists them"
            )


def given(space: Space, context: SearchContext, thresholds: Mapping[str, float]) -> Plan:
    """A plan of these thresholds, on the scale of the method's rule.

    Groups that are not named stay whole. The plan is trained as a target of the chain is. Errors:
    PlanError for thresholds that empty a group.
    """
    unpruned = space.unpruned(context, space.chain(context, 0.5))
    asked = Thresholds(dict(thresholds), context.rule)
    return context.pruned(unpruned, context.counts(asked), asked)
