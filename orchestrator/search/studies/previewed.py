"""Begin a study that finetunes with a preview, in which nothing was.

Its models have no training to inherit. What it knows is how a FLOPs target is best shared out among
the groups. So its allocations stand in for equal ratios: the chain follows them, and trials around
the chain vary them. All plans are made and trained by this study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.plan import by_group
from lightning_modules.pruning.structure import Counts, Structure
from orchestrator.search.front import non_dominated
from orchestrator.search.lab.facts import Facts
from orchestrator.search.plans.finished import keep_from_json, read_plan
from orchestrator.search.space import Allocation
from orchestrator.search.studies.other_study import TAKEN_OVER, OtherStudy, other_study
from orchestrator.search.studies.trial import MEASURED, STATE, Study
from orchestrator.settings import Settings

ALLOCATIONS = "allocations"
"""Attribute of the study: units per group of each allocation of a preview, large to small."""


def of_dense(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that makes the dense model and its groups."""
    return {**recipe, "phases": {"train": recipe["phases"]["train"]}}


def check_preview(settings: Settings, methods: Mapping[str, Any]) -> None:
    """Checks that this study can share out units as the preview, with its `methods`, did.

    Errors: ConfigError for methods that set single weights to zero, and for spaces that do not
    share out a target.
    """
    name = settings.search.warm_start
    on_weights = []
    for method in methods.values():
        if method["granularity"] != "unit":
            on_weights.append(f"its method '{method['name']}'")
    for own in settings.method.choices():
        if not own.removes_units:
            on_weights.append(f"this study's method '{own.name}'")
    if on_weights:
        raise ConfigError(
            f"search.warm_start={name} is a preview, which gives the units of each group; "
            f"{on_weights[0]} sets single weights to zero: take methods that remove units, or "
            "search.warm_start=null"
        )
    if not isinstance(settings.space.build(), Allocation):
        raise ConfigError(
            f"search.warm_start={name} is a preview, which says how a FLOPs target is shared out; "
            f"{settings.space.target} shares out none: take space=allocation or "
            "space=hierarchical, or search.warm_start=null"
        )


def take_allocations(settings: Settings, study: Study, facts: Facts) -> int:
    """Record the allocations of a preview's front in the study, once; return how many it has.

    Errors: ConfigError for another dense model, or a preview without a completed trial. DataError
    for plans of other groups.
    """
    other = other_study(settings, study)
    if other is not None and other.is_preview:
        allocations = _allocations(other, facts)
        named = [by_group(facts.structure, kept) for kept in allocations]
        study.set_user_attr(ALLOCATIONS, named)
        study.set_user_attr(TAKEN_OVER, True)
    return len(study.user_attrs.get(ALLOCATIONS, ()))


def _allocations(other: OtherStudy, facts: Facts) -> Counts:
    """Those of the preview's front, each within the one before; shape (n_allocations, n_groups).

    Errors: as in `take_allocations`.
    """
    points = []
    allocations = []
    for trial in _completed(other):
        other.require_same_weights(other.lineage(trial.number), facts)
        kept = _kept(other, trial, facts.structure)
        points.append((_quality(trial, facts), facts.cost.macs(kept)))
        allocations.append(kept)
    front = np.flatnonzero(non_dominated(np.array(points)))
    large_first = sorted(front, key=lambda index: -points[index][1])
    nested: Counts = np.minimum.accumulate([allocations[index] for index in large_first])
    return nested


def _completed(other: OtherStudy) -> list[FrozenTrial]:
    """Errors: ConfigError where there is none."""
    trials = other.finished(other.load())
    completed = [trial for trial in trials if trial.user_attrs[STATE] == "completed"]
    if not completed:
        raise ConfigError(
            f"search.warm_start={other.name} is a preview none of whose trials is within its "
            "bounds; take wider ones there, or search.warm_start=null"
        )
    return completed


def allocations_in(study: Study, structure: Structure) -> Counts | None:
    """The preview's allocations, each within the one before; shape (n_allocations, n_groups).

    None in a study that does not begin from a preview.
    """
    recorded = study.user_attrs.get(ALLOCATIONS)
    if recorded is None:
        return None
    names = [group.name for group in structure.groups]
    return np.array([[kept[name] for name in names] for kept in recorded], dtype=np.int64)


def _kept(other: OtherStudy, trial: FrozenTrial, structure: Structure) -> Counts:
    """Units per group of a preview's model; shape (n_groups,).

    Errors: DataError where its groups are not those of this model.
    """
    folder = other.plans[trial.number]
    try:
        keep = keep_from_json(read_plan(folder)["keep"], structure)
    except (KeyError, ValueError) as error:
        raise DataError(
            f"search.warm_start={other.name} must have the groups of this model; {folder} has "
            f"others: {error}; run the preview again, or take search.warm_start=null"
        ) from error
    return structure.counts(keep)


def _quality(trial: FrozenTrial, facts: Facts) -> float:
    """By validation data, larger is better."""
    metrics = trial.user_attrs[MEASURED]["metrics"]
    return float(facts.goals.sign * metrics[facts.goals.quality])
