"""A method made ready for one network: a pruner per stage, and its scores on the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.schedules import RETURNING
from lightning_modules.pruning.thresholds import Scores
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.results.error_curves import ErrorCurve, ErrorCurves
from orchestrator.results.quantities import FREE_ERROR
from orchestrator.search.lab.lab import Lab
from orchestrator.search.space import Hybrid, Patterns, SearchContext
from orchestrator.search.space.allocation import Sensitivity
from orchestrator.search.space.outline import context_of
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner, comparable, pruner_of
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import MethodSettings, Settings

CURVE_POINTS = 20
"""Most points of a group's error curve, its two ends included."""


@dataclass(frozen=True)
class PreparedStage:
    """One stage of a method on the dense model; `scores` are as its scope compares them.

    `errors` are the scores as they were, where the criterion's are errors.
    """

    settings: MethodSettings
    pruner: UnitPruner | WeightPruner
    scores: Scores
    errors: Scores | None = None

    def free(self) -> dict[str, float] | None:
        """The share of each group's units that go within `FREE_ERROR`; None without errors."""
        if self.errors is None:
            return None
        shares = {}
        for name, errors in self._errors_by_group().items():
            shares[name] = float(np.mean(errors < FREE_ERROR))
        return shares

    def error_curves(self) -> ErrorCurves:
        """The error of what follows each group as its units go; empty without errors."""
        curves = {}
        for name, errors in self._errors_by_group().items():
            curves[name] = error_curve(errors)
        return curves

    def _errors_by_group(self) -> dict[str, Scores]:
        """The errors at which the units of each group go; without groups that nothing consumes."""
        errors = {}
        for group in self.pruner.structure.groups:
            consumed = any([member.role == "in" for member in group.members])
            if self.errors is not None and consumed:
                errors[group.name] = self.errors[group.units]
        return errors


def error_curve(errors: Scores) -> ErrorCurve:
    """From the error at which each unit goes, shape (units,), to the error of so many units.

    Units go in the order of their errors.
    """
    units = len(errors)
    after = np.concatenate([[0.0], np.sort(errors)])
    counts = np.unique(np.linspace(0, units, CURVE_POINTS).round().astype(int))
    return [(count / units, float(after[count])) for count in counts]


@dataclass(frozen=True)
class PreparedMethod:
    """The stages of a method in turn."""

    settings: MethodSettings
    stages: tuple[PreparedStage, ...]

    def context(self, lab: Lab, sensitivity: Sensitivity | None) -> SearchContext:
        """What spaces know of the method; the sensitivity is that of the first stage."""
        then: SearchContext | None = None
        for index, stage in reversed(list(enumerate(self.stages))):
            then = context_of(
                stage.settings,
                stage.pruner.structure,
                lab.facts.model,
                stage.scores,
                None if index else sensitivity,
                then,
            )
        assert then is not None
        return then


def prepare_method(lab: Lab, settings: MethodSettings) -> PreparedMethod:
    """Score the dense model once per stage.

    Errors: PlanError, with the group, for scores that are not finite.
    """
    stages = [_prepared(lab, stage) for stage in settings.stages()]
    return PreparedMethod(settings, tuple(stages))


def _prepared(lab: Lab, settings: MethodSettings) -> PreparedStage:
    pruner = pruner_of(lab, settings)
    full = pruner.structure.full()
    with lab.timed("scores"):
        scores = pruner.scores(lab.facts.model, full, seed_of(lab.seed, Stream.SCORES))
    errors = scores if scores_are_errors(pruner.criterion) else None
    return PreparedStage(settings, pruner, comparable(pruner, scores), errors)


def scores_are_errors(criterion: Any) -> bool:
    return bool(getattr(criterion, "scores_are_errors", False))


def check_method(settings: Settings, space: Any) -> None:
    """Checks what can be checked before anything expensive.

    Errors: ConfigError for parts that do not go together.
    """
    _check_distillation(settings, space)
    if any(settings.method.int8):
        EXPORT_FORMATS["int8"].require()
    for method in settings.method.choices():
        for stage in method.stages():
            _check_criterion(stage)
            _check_returning(stage, space)
        _check_space(method, space)
    sparsify = settings.phases.sparsify
    if sparsify is not None:
        sparsify.penalty.build()


def _check_distillation(settings: Settings, space: Any) -> None:
    distillation = settings.phases.finetune.distillation
    taught = distillation is not None and distillation.weight > 0.0
    if getattr(space, "distillation", None) is not None and not taught:
        raise ConfigError(
            "space.distillation searches the weight of the dense outputs in the loss; it needs "
            "phases.finetune.distillation with a weight above 0"
        )


def _check_criterion(stage: MethodSettings) -> None:
    criterion = stage.scoring().build()
    if not stage.removes_units and not hasattr(criterion, "weights"):
        raise ConfigError(
            f"method '{stage.name}': {type(criterion).__name__} scores whole units, not single "
            "weights; take a criterion that does, such as l1, taylor or lamp"
        )
    if stage.scope == "per_mac" and not scores_are_errors(criterion):
        raise ConfigError(
            "method.scope=per_mac compares errors of removal; the scores of method "
            f"'{stage.name}' are none: take method=obs, or scope global, isomorphic or local"
        )


def _check_returning(stage: MethodSettings, space: Any) -> None:
    """Some schedules let what was pruned come back; a hard method removes it for good."""
    regrowth = None if stage.regrowth is None else stage.regrowth.build()
    comes_back = stage.soft or bool(regrowth and regrowth.dense)
    returning = set(getattr(space, "shapes", ())) & RETURNING
    if returning and not comes_back:
        raise ConfigError(
            f"space.shapes {sorted(returning)} let pruned units come back, which a hard method "
            "cannot; take method.soft=true, or leave them out"
        )


def _check_space(method: MethodSettings, space: Any) -> None:
    pattern = method.granularity == "pattern"
    searches_patterns = isinstance(space, Patterns)
    if pattern and not searches_patterns:
        raise ConfigError("N:M has no threshold; take space=patterns")
    if searches_patterns and not pattern:
        raise ConfigError(
            "space=patterns is for methods of granularity pattern (N:M); take space=allocation"
        )
    if isinstance(space, Hybrid) != (len(method.stages()) > 1):
        raise ConfigError(
            "a method with a second stage (`then`) and space=hybrid go together; take both or "
            "neither"
        )
