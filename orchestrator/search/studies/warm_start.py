"""Begin a study with what another one found: its finished plans become trials of this one, at no
cost to it.

They are taken over whole, plans and weights, so that nothing needs the other study afterwards.
Everything that decides a lineage's bits must be the same; methods, spaces and objectives may
differ.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.plan import Timing
from orchestrator.costs import with_ratios
from orchestrator.files import write_atomic, writing
from orchestrator.redact import redact_tree
from orchestrator.search.lab.facts import Facts
from orchestrator.search.plans.finished import PLAN, read_plan
from orchestrator.search.plans.lineage import Lineage, differences, lineage_in, recipe_of
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.space import Params, Space, Terrain
from orchestrator.search.studies.optuna_inside import contains
from orchestrator.search.studies.orphans import SAVED
from orchestrator.search.studies.storage import storage_of
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

TAKEN_OVER = "taken_over"
ABOUT = 0.1
"""How far a cost may be from a target's, as a part of it, to be about the same; targets lie further
apart.
"""


def check_warm_start(settings: Settings, study: Study) -> None:
    """Before anything expensive. Errors: ConfigError for a study that is not there, or was made
    otherwise.
    """
    if (name := settings.search.warm_start) is None or study.user_attrs.get(TAKEN_OVER):
        return
    folders = settings.study.out.glob("*/trials/*/" + PLAN)
    known = sorted({path.parents[2].name for path in folders} - {settings.study.name})
    if name not in known:
        near = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
        there = ", ".join(near) or "none"
        raise ConfigError(
            "search.warm_start must name another study with finished plans in "
            f"{settings.study.out}; got '{name}'; "
            f"there: {there}"
        )
    for number in sorted(_plans(settings)):
        lineage = _lineage(settings, number)
        if changes := differences(
            dict(lineage.recipe), json.loads(json.dumps(recipe_of(settings)))
        ):
            raise ConfigError(
                f"search.warm_start={name} needs the same model, data and training; "
                f"{'; '.join(changes)}. "
                "Give the values it had, or search.warm_start=null"
            )


@dataclass(frozen=True)
class Receiver:
    """The study that takes plans over: its settings, what is known of its dense network, and what
    it proposes.
    """

    study: Study
    settings: Settings
    facts: Facts
    space: Space
    terrain: Terrain


def import_trials(receiver: Receiver, store: PlanStore) -> int:
    """How many plans this study has of the other one, each a trial of kind `warm`; they are
    imported once.

    A trial whose parameters mean the same plan here is told to Optuna; the others are told as
    failed, which all samplers leave out, and stand on the front by their state alone. Plans that
    this study's objectives cannot place, or that lie outside its bounds, are parents and no more.
    Errors: ConfigError for weights of another dense model.
    """
    settings, study = receiver.settings, receiver.study
    numbers = {
        trial.user_attrs[ORIGIN]["trial"]: trial.number
        for trial in study.get_trials(deepcopy=False)
        if ORIGIN in trial.user_attrs
    }
    if settings.search.warm_start is None or study.user_attrs.get(TAKEN_OVER):
        return len(numbers)
    other = _other_study(settings)
    alike = _same_parameters(other, settings)
    for trial in _importable(other, settings):
        if trial.number in numbers:
            continue
        lineage = _lineage(settings, trial.number)
        _require_same_weights(settings, lineage, receiver.facts)
        study.add_trial(_trial(receiver, trial, lineage, alike))
        numbers[trial.number] = len(study.get_trials(deepcopy=False)) - 1
    for old, new in numbers.items():
        _copy(_plans(settings)[old], store.of(new), numbers)
    study.set_user_attr(TAKEN_OVER, True)
    return len(numbers)


def _other_study(settings: Settings) -> Study:
    """Errors: ConfigError where its trials are not in this study's storage."""
    name = settings.search.warm_start
    assert name is not None
    try:
        return optuna.load_study(study_name=name, storage=storage_of(_other(settings)))
    except KeyError as error:
        raise ConfigError(
            f"search.warm_start={name} has plans, and its trials are not in the storage of this "
            "study; give study.storage the value it had"
        ) from error


def _importable(other: Study, settings: Settings) -> list[FrozenTrial]:
    """Trials of the other study that have a finished plan, by number."""
    plans = _plans(settings)
    trials = [
        trial
        for trial in other.get_trials(deepcopy=False)
        if trial.number in plans and trial.user_attrs.get(STATE) in SAVED
    ]
    return sorted(trials, key=lambda trial: trial.number)


def _same_parameters(other: Study, settings: Settings) -> bool:
    """Whether parameters of the other study mean the same here: the method and the kind of space
    are the same.
    """
    identity = other.user_attrs[IDENTITY]
    same_method = identity["method"] == _plain(settings)["method"]
    return bool(same_method and identity["space"]["_target_"] == settings.space.target)


def _require_same_weights(settings: Settings, lineage: Lineage, facts: Facts) -> None:
    if lineage.dense != facts.dense_digest:
        raise ConfigError(
            f"search.warm_start={settings.search.warm_start} begins with other dense weights: "
            f"{lineage.dense[:12]} "
            f"there, {facts.dense_digest[:12]} here; take the same study.baselines (or "
            "phases.train.checkpoint), or null"
        )


class FilledTargets:
    """Whether an imported plan stands where a target of the chain would, trained for as long; each
    stands once.

    A target is told by its parameters and its place in `target_steps`, the optimizer steps of the
    chain's plans; with lineage it would have the steps of those before it as well.
    """

    def __init__(self, receiver: Receiver, target_steps: Sequence[float]) -> None:
        self.receiver, self.target_steps = receiver, target_steps
        first = receiver.settings.method.choices()[0]
        self.granularities = [stage.granularity for stage in first.stages()]
        self.imported = [
            trial
            for trial in receiver.study.get_trials(deepcopy=False)
            if trial.user_attrs.get(KIND) == WARM and trial.user_attrs[STATE] == "completed"
        ]

    def __call__(self, params: Params, place: int) -> bool:
        if not self.imported:
            return False
        facts, receiver = self.receiver.facts, self.receiver
        try:
            plan = receiver.space.propose(receiver.terrain, params)
        except PlanError:  # the trial will say so
            return False
        cost = facts.ratios(plan.counts(facts.structure), plan.density)[facts.axis]
        for trial in self.imported:
            if self._stands_for(trial, cost, self._steps(place)):
                self.imported.remove(trial)
                return True
        return False

    def _steps(self, place: int) -> float:
        if self.receiver.settings.search.lineage:
            return sum(self.target_steps[: place + 1])
        return self.target_steps[place]

    def _stands_for(self, trial: FrozenTrial, cost: float, steps: float) -> bool:
        measured, origin = trial.user_attrs[MEASURED], trial.user_attrs[ORIGIN]
        near = abs(measured["ratios"][self.receiver.facts.axis] / cost - 1.0) <= ABOUT
        alike = origin["granularities"] == self.granularities
        return bool(near and alike and origin["steps"] >= steps)


def _trial(receiver: Receiver, trial: FrozenTrial, lineage: Lineage, alike: bool) -> FrozenTrial:
    """The trial as this study has it; unless `alike`, its parameters mean nothing here."""
    measured, goals = trial.user_attrs[MEASURED], receiver.facts.goals
    method = MethodSettings.model_validate(lineage.methods[lineage.links[-1].method])
    origin = {
        "study": receiver.settings.search.warm_start,
        "trial": trial.number,
        "steps": lineage.trained_steps,
        "granularities": [stage.granularity for stage in method.stages()],
    }
    values = {**with_ratios(measured["costs"], measured["ratios"]), **measured["metrics"]}
    reasons = [f"{name} was not measured there" for name in goals.names if name not in values]
    if broken := goals.broken(values):
        reasons.append(broken)
    attrs = {
        KIND: WARM,
        ORIGIN: origin,
        MEASURED: measured,
        RUNGS: trial.user_attrs.get(RUNGS, []),
        SECONDS: 0.0,
        STATE: "parent" if reasons else "completed",
        REASON: "; ".join([f"trial {trial.number} of study {origin['study']}", *reasons]),
    }
    space, terrain = receiver.space, receiver.terrain
    if reasons or not alike or not _means_the_same(space, terrain, trial):
        return create_trial(state=TrialState.FAIL, user_attrs=attrs)
    return create_trial(
        values=[values[name] for name in goals.names],
        params=trial.params,
        distributions=space.distributions(terrain),
        user_attrs=attrs,
        constraints=goals.excesses(values),
    )


def _means_the_same(space: Space, terrain: Terrain, trial: FrozenTrial) -> bool:
    """Whether the parameters lie in this space and have the timing, activations and exported format
    of the plan.
    """
    distributions = space.distributions(terrain)
    if set(trial.params) != set(distributions):
        return False
    for name, value in trial.params.items():
        if not contains(distributions[name], value):
            return False
    recorded = trial.user_attrs[MEASURED]["plan"]
    was = Timing(**recorded["timing"])
    proposed = space.unpruned(terrain, trial.params)
    timing = replace(
        proposed.timing, round_steps=was.round_steps, accumulate=was.accumulate, mixed=was.mixed
    )
    settings = (timing, proposed.activation, proposed.export)
    return settings == (was, recorded["activation"], recorded["export"])


def _copy(source: Path, target: Path, numbers: Mapping[int, int]) -> None:
    """The plan under this study's numbers; other files are shared, as nobody writes to them; the
    plan comes last.
    """
    if (target / PLAN).exists():
        return
    document = read_plan(source)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name == PLAN:
            continue
        (target / path.name).unlink(missing_ok=True)
        try:
            os.link(path, target / path.name)
        except OSError:  # another file system
            with writing(target / path.name):
                shutil.copy2(path, target / path.name)
    links = [
        {**link, "trial": numbers[link["trial"]], "plan": _renumbered(link["plan"], numbers)}
        for link in document["lineage"]["links"]
    ]
    found = {
        **document,
        "trial": numbers[document["trial"]],
        "ancestors": [numbers[number] for number in document["ancestors"]],
        "plan": _renumbered(document["plan"], numbers),
        "lineage": {**document["lineage"], "links": links},
    }
    write_atomic(target / PLAN, json.dumps(found, indent=1))


def _renumbered(plan: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    return {**plan, "parent": None if plan["parent"] is None else numbers[plan["parent"]]}


def _plans(settings: Settings) -> dict[int, Path]:
    """Folders of the other study's finished plans by their trial."""
    found = _other(settings).study.folder.glob(f"trials/*/{PLAN}")
    return {int(path.parent.name): path.parent for path in found if path.parent.name.isdigit()}


def _lineage(settings: Settings, number: int) -> Lineage:
    folder = _plans(settings)[number]
    return lineage_in(read_plan(folder), folder)


def _other(settings: Settings) -> Settings:
    study = settings.study.model_copy(update={"name": settings.search.warm_start})
    return settings.model_copy(update={"study": study})


def _plain(settings: Settings) -> Any:
    return json.loads(json.dumps(redact_tree(settings.identity())))
