"""Begin a study with the finished plans of another one, at no cost to it.

Plans become trials of this study. They are taken over whole, plans and weights, so that nothing
needs the other study afterwards. Everything that decides a lineage's bits must be the same;
methods, spaces and objectives may differ.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.plan import Timing
from orchestrator.costs import with_ratios
from orchestrator.files import write_atomic, writing
from orchestrator.redact import redact_tree
from orchestrator.search.lab.facts import Facts
from orchestrator.search.plans.finished import PLAN, read_plan
from orchestrator.search.plans.lineage import Lineage, differences, recipe_of
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.space import Params, SearchContext, Space
from orchestrator.search.studies.optuna_inside import contains
from orchestrator.search.studies.other_study import TAKEN_OVER, other_study
from orchestrator.search.studies.previewed import check_preview, of_dense
from orchestrator.search.studies.study import IDENTITY
from orchestrator.search.studies.trial import (
    KIND,
    MEASURED,
    ORIGIN,
    REASON,
    RUNGS,
    SECONDS,
    STATE,
    WARM,
    Study,
)
from orchestrator.settings import MethodSettings, Settings

ABOUT = 0.1
"""Largest relative distance at which a cost is about that of a target; targets lie further apart.
"""


def check_warm_start(settings: Settings, study: Study) -> None:
    """Checks the other study before anything expensive.

    Errors: ConfigError for a study that does not exist, or was made otherwise.
    """
    other = other_study(settings, study)
    if other is None:
        return
    other.require_plans()
    recipe = json.loads(json.dumps(recipe_of(settings)))
    for number in sorted(other.plans):
        lineage = other.lineage(number)
        theirs = dict(lineage.recipe)
        ours = recipe
        if other.is_preview:
            check_preview(settings, lineage.methods)
            theirs = of_dense(theirs)
            ours = of_dense(ours)
        changes = differences(theirs, ours)
        if changes:
            raise ConfigError(
                f"search.warm_start={other.name} needs the same model, data and training; "
                f"{'; '.join(changes)}. "
                "Give the values it had, or search.warm_start=null"
            )


@dataclass(frozen=True)
class Receiver:
    """The study that takes plans over.

    It has its settings, the facts about its dense network, and what it proposes.
    """

    study: Study
    settings: Settings
    facts: Facts
    space: Space
    context: SearchContext


def import_trials(receiver: Receiver, store: PlanStore) -> int:
    """Import the other study's plans, once; return how many this study has of it.

    Each plan is a trial of kind `warm`. A trial whose parameters mean the same plan in this study
    is told to Optuna; the others are told as failed, which all samplers leave out, and stand on the
    front by their state alone. Plans that this study's objectives cannot place, or that lie outside
    its bounds, are parents and no more.
    Errors: ConfigError for weights of another dense model.
    """
    settings = receiver.settings
    study = receiver.study
    numbers = _imported(study)
    other = other_study(settings, study)
    if other is None:
        return len(numbers)
    trials = other.load()
    alike = _same_parameters(trials, settings)
    for trial in other.finished(trials):
        if trial.number in numbers:
            continue
        lineage = other.lineage(trial.number)
        other.require_same_weights(lineage, receiver.facts)
        study.add_trial(_trial(receiver, trial, lineage, alike))
        numbers[trial.number] = len(study.get_trials(deepcopy=False)) - 1
    for old, new in numbers.items():
        _copy(other.plans[old], store.of(new), numbers)
    study.set_user_attr(TAKEN_OVER, True)
    return len(numbers)


def _imported(study: Study) -> dict[int, int]:
    """Numbers of the trials imported so far, by their numbers in the other study."""
    numbers: dict[int, int] = {}
    for trial in study.get_trials(deepcopy=False):
        if ORIGIN in trial.user_attrs:
            numbers[trial.user_attrs[ORIGIN]["trial"]] = trial.number
    return numbers


def _same_parameters(other: Study, settings: Settings) -> bool:
    """Whether parameters of the other study mean the same in this one.

    They do if the method and the kind of space are the same.
    """
    identity = other.user_attrs[IDENTITY]
    same_method = identity["method"] == _plain(settings)["method"]
    return bool(same_method and identity["space"]["_target_"] == settings.space.target)


class FilledTargets:
    """Whether an imported plan stands where a target of the chain would, trained for as long.

    Each imported plan stands for one target. A target is identified by its parameters and its index
    in `target_steps`, the optimizer steps of the chain's plans. With lineage it would have the
    steps of those before it as well.
    """

    def __init__(self, receiver: Receiver, target_steps: Sequence[float]) -> None:
        self.receiver = receiver
        self.target_steps = target_steps
        first = receiver.settings.method.choices()[0]
        self.granularities = [stage.granularity for stage in first.stages()]
        self.imported: list[FrozenTrial] = []
        for trial in receiver.study.get_trials(deepcopy=False):
            if trial.user_attrs.get(KIND) == WARM and trial.user_attrs[STATE] == "completed":
                self.imported.append(trial)

    def __call__(self, params: Params, index: int) -> bool:
        if not self.imported:
            return False
        facts = self.receiver.facts
        receiver = self.receiver
        try:
            plan = receiver.space.propose(receiver.context, params)
        except PlanError:
            # the trial itself reports the error
            return False
        kept = plan.counts(facts.structure)
        cost = facts.ratios(kept, plan.density)[facts.axis]
        steps = self._steps(index)
        for trial in self.imported:
            if self._stands_for(trial, cost, steps):
                self.imported.remove(trial)
                return True
        return False

    def _steps(self, index: int) -> float:
        if self.receiver.settings.search.lineage:
            return sum(self.target_steps[: index + 1])
        return self.target_steps[index]

    def _stands_for(self, trial: FrozenTrial, cost: float, steps: float) -> bool:
        measured = trial.user_attrs[MEASURED]
        origin = trial.user_attrs[ORIGIN]
        imported_cost = measured["ratios"][self.receiver.facts.axis]
        near = abs(imported_cost / cost - 1.0) <= ABOUT
        alike = origin["granularities"] == self.granularities
        return bool(near and alike and origin["steps"] >= steps)


def _trial(receiver: Receiver, trial: FrozenTrial, lineage: Lineage, alike: bool) -> FrozenTrial:
    """The trial as this study stores it; unless `alike`, its parameters mean nothing here."""
    goals = receiver.facts.goals
    measured = trial.user_attrs[MEASURED]
    values = {**with_ratios(measured["costs"], measured["ratios"]), **measured["metrics"]}
    reasons = [f"{name} was not measured there" for name in goals.names if name not in values]
    broken = goals.broken(values)
    if broken:
        reasons.append(broken)
    origin = _origin(receiver, trial, lineage)
    attrs = {
        KIND: WARM,
        ORIGIN: origin,
        MEASURED: measured,
        RUNGS: trial.user_attrs.get(RUNGS, []),
        SECONDS: 0.0,
        STATE: "parent" if reasons else "completed",
        REASON: "; ".join([f"trial {trial.number} of study {origin['study']}", *reasons]),
    }
    space = receiver.space
    context = receiver.context
    if reasons or not alike or not _means_the_same(space, context, trial):
        return create_trial(state=TrialState.FAIL, user_attrs=attrs)
    return create_trial(
        values=[values[name] for name in goals.names],
        params=trial.params,
        distributions=space.distributions(context),
        user_attrs=attrs,
        constraints=goals.excesses(values),
    )


def _origin(receiver: Receiver, trial: FrozenTrial, lineage: Lineage) -> dict[str, Any]:
    """Where an imported trial comes from, and how its plan was made."""
    last = lineage.links[-1]
    method = MethodSettings.model_validate(lineage.methods[last.method])
    return {
        "study": receiver.settings.search.warm_start,
        "trial": trial.number,
        "steps": lineage.trained_steps,
        "granularities": [stage.granularity for stage in method.stages()],
    }


def _means_the_same(space: Space, context: SearchContext, trial: FrozenTrial) -> bool:
    """Whether the trial's parameters stand for the same plan in this space.

    They must lie in the space, and give the timing, activations and exported format of the plan.
    """
    distributions = space.distributions(context)
    if set(trial.params) != set(distributions):
        return False
    for name, value in trial.params.items():
        if not contains(distributions[name], value):
            return False
    recorded = trial.user_attrs[MEASURED]["plan"]
    recorded_timing = Timing(**recorded["timing"])
    proposed = space.unpruned(context, trial.params)
    timing = replace(
        proposed.timing,
        round_steps=recorded_timing.round_steps,
        accumulate=recorded_timing.accumulate,
        mixed=recorded_timing.mixed,
    )
    if timing != recorded_timing:
        return False
    settings = (proposed.activation, proposed.export)
    return settings == (recorded["activation"], recorded["export"])


def _copy(source: Path, target: Path, numbers: Mapping[int, int]) -> None:
    """The plan's folder under this study's numbers; the plan itself is written last.

    Other files are shared, as nobody writes to them.
    """
    if (target / PLAN).exists():
        return
    document = read_plan(source)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name != PLAN:
            _share(path, target / path.name)
    links = []
    for link in document["lineage"]["links"]:
        plan = _renumbered(link["plan"], numbers)
        links.append({**link, "trial": numbers[link["trial"]], "plan": plan})
    renumbered = {
        **document,
        "trial": numbers[document["trial"]],
        "ancestors": [numbers[number] for number in document["ancestors"]],
        "plan": _renumbered(document["plan"], numbers),
        "lineage": {**document["lineage"], "links": links},
    }
    write_atomic(target / PLAN, json.dumps(renumbered, indent=1))


def _share(source: Path, target: Path) -> None:
    """The same file under another path; a copy where that lies on another file system."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with writing(target):
            shutil.copy2(source, target)


def _renumbered(plan: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    parent = plan["parent"]
    return {**plan, "parent": None if parent is None else numbers[parent]}


def _plain(settings: Settings) -> Any:
    return json.loads(json.dumps(redact_tree(settings.identity())))
