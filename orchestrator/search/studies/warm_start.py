"""Begin a study with what another one found: its finished plans become trials of this one, at no cost to it.

They are taken over whole, plans and weights, so that nothing needs the other study afterwards. Everything that decides
a lineage's bits must be the same; methods, spaces and objectives may differ.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.plan import Timing
from orchestrator.costs import with_ratios
from orchestrator.files import write_atomic, writing
from orchestrator.redact import redact_tree
from orchestrator.search.lab.problem import Problem
from orchestrator.search.plans.finished import PLAN, read_plan
from orchestrator.search.plans.lineage import Lineage, differences, lineage_in, recipe_of
from orchestrator.search.space import Params, Space, Terrain
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
from orchestrator.search.trials.evaluate import Evaluator
from orchestrator.settings import Settings

TAKEN_OVER = "taken_over"
ABOUT = 0.1
"""How far a cost may be from a rung's, as a part of it, to be about the same; rungs lie further apart."""


def check_warm_start(settings: Settings, study: Study) -> None:
    """Before anything expensive. Errors: ConfigError for a study that is not there, or was made otherwise."""
    if (name := settings.search.warm_start) is None or study.user_attrs.get(TAKEN_OVER):
        return
    folders = settings.study.out.glob("*/trials/*/" + PLAN)
    known = sorted({path.parents[2].name for path in folders} - {settings.study.name})
    if name not in known:
        near = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
        there = ", ".join(near) or "none"
        raise ConfigError(
            f"search.warm_start must name another study with finished plans in {settings.study.out}; got '{name}'; "
            f"there: {there}"
        )
    for number in sorted(_plans(settings)):
        lineage = _lineage(settings, number)
        if changes := differences(
            dict(lineage.recipe), json.loads(json.dumps(recipe_of(settings)))
        ):
            raise ConfigError(
                f"search.warm_start={name} needs the same model, data and training; {'; '.join(changes)}. "
                "Give the values it had, or search.warm_start=null"
            )


def take_over(study: Study, space: Space, terrain: Terrain, evaluator: Evaluator) -> int:
    """How many plans this study has of the other one, each a trial of kind `warm`; taken over once.

    A trial whose parameters mean the same plan here is told to Optuna; the others are told as failed, which all
    samplers leave out, and stand on the front by their state alone. Plans that this study's objectives cannot place, or
    that lie outside its bounds, are parents and no more. Errors: ConfigError for weights of another dense model.
    """
    problem = evaluator.problem
    settings, known = problem.settings, study.get_trials(deepcopy=False)
    numbers = {
        trial.user_attrs[ORIGIN]["trial"]: trial.number
        for trial in known
        if ORIGIN in trial.user_attrs
    }
    if settings.search.warm_start is None or study.user_attrs.get(TAKEN_OVER):
        return len(numbers)
    dense = problem.dense_digest
    try:
        first = optuna.load_study(
            study_name=settings.search.warm_start, storage=storage_of(_other(settings))
        )
    except KeyError as error:
        raise ConfigError(
            f"search.warm_start={settings.search.warm_start} has plans, and its trials are not in the storage of this "
            "study; give study.storage the value it had"
        ) from error
    trials = {
        trial.number: trial
        for trial in first.get_trials(deepcopy=False)
        if trial.number in _plans(settings)
    }
    for number, trial in sorted(trials.items()):
        if number in numbers or trial.user_attrs.get(STATE) not in (
            "completed",
            "infeasible",
            "parent",
        ):
            continue
        lineage = _lineage(settings, number)
        if lineage.dense != dense:
            raise ConfigError(
                f"search.warm_start={settings.search.warm_start} begins with other dense weights: {lineage.dense[:12]} "
                f"there, {dense[:12]} here; take the same study.baselines (or phases.train.checkpoint), or null"
            )
        same = first.user_attrs[IDENTITY]["method"] == _plain(settings)["method"]
        same = same and first.user_attrs[IDENTITY]["space"]["_target_"] == settings.space.target
        study.add_trial(_trial(problem, study, trial, lineage, space if same else None, terrain))
        numbers[number] = len(study.get_trials(deepcopy=False)) - 1
    for old, new in numbers.items():
        _copy(_plans(settings)[old], evaluator.models / str(new), numbers)
    study.set_user_attr(TAKEN_OVER, True)
    return len(numbers)


def filled(
    study: Study,
    space: Space,
    terrain: Terrain,
    evaluator: Evaluator,
    granularities: Sequence[str],
    rung_steps: Sequence[float],
) -> Callable[[Params, int], bool]:
    """Whether a plan that was taken over stands where a rung of the chain would, trained for as long; each stands once.

    The rung is told by its parameters and its place in `rung_steps`; with lineage it would have the steps of those
    before it as well.
    """
    problem = evaluator.problem
    there = [
        trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(KIND) == WARM
    ]

    def found(params: Params, place: int) -> bool:
        if not there:
            return False
        steps = (
            sum(rung_steps[: place + 1]) if problem.settings.search.lineage else rung_steps[place]
        )
        try:
            wanted = evaluator.wanted(space.propose(terrain, params))
        except PlanError:  # the trial will say so
            return False
        cost = problem.ratios(wanted.kept, wanted.density)[problem.axis]
        for trial in there:
            measured, origin = trial.user_attrs[MEASURED], trial.user_attrs[ORIGIN]
            alike = [
                stage["method"]["granularity"] for stage in measured["plan"]["stages"]
            ] == list(granularities)
            near = abs(measured["ratios"][problem.axis] / cost - 1.0) <= ABOUT
            if (
                alike
                and near
                and origin["steps"] >= steps
                and trial.user_attrs[STATE] == "completed"
            ):
                there.remove(trial)
                return True
        return False

    return found


def _trial(
    problem: Problem,
    study: Study,
    trial: FrozenTrial,
    lineage: Lineage,
    space: Space | None,
    terrain: Terrain,
) -> FrozenTrial:
    """The trial as this study has it; `space` None: its parameters mean nothing here."""
    measured = trial.user_attrs[MEASURED]
    origin = {
        "study": problem.settings.search.warm_start,
        "trial": trial.number,
        "steps": lineage.trained_steps,
    }
    goals = problem.goals
    values = {**with_ratios(measured["costs"], measured["ratios"]), **measured["metrics"]}
    reasons = [f"{name} was not measured there" for name in goals.names if name not in values]
    reasons += [broken] if (broken := goals.broken(values)) else []
    attrs = {
        KIND: WARM,
        ORIGIN: origin,
        MEASURED: measured,
        RUNGS: trial.user_attrs.get(RUNGS, []),
        SECONDS: 0.0,
        STATE: "parent" if reasons else "completed",
        REASON: "; ".join([f"trial {trial.number} of study {origin['study']}", *reasons]),
    }
    if reasons or space is None or not _means_the_same(space, terrain, trial):
        return create_trial(state=TrialState.FAIL, user_attrs=attrs)
    return create_trial(
        values=[values[name] for name in goals.names],
        params=trial.params,
        distributions=space.distributions(terrain),
        user_attrs=attrs,
        constraints=goals.excesses(values),
    )


def _means_the_same(space: Space, terrain: Terrain, trial: FrozenTrial) -> bool:
    """Whether the parameters lie in this space and have the timing, activations and int8 of the plan."""
    here, plan = space.distributions(terrain), trial.user_attrs[MEASURED]["plan"]
    if set(trial.params) != set(here):
        return False
    if not all(
        here[name]._contains(here[name].to_internal_repr(value))
        for name, value in trial.params.items()
    ):
        return False
    proposal = space.propose(terrain, trial.params)
    was = Timing(**plan["timing"])
    timing = replace(
        proposal.timing, round_steps=was.round_steps, accumulate=was.accumulate, mixed=was.mixed
    )
    return timing == was and (proposal.activation, proposal.int8) == (
        plan["activation"],
        plan["int8"],
    )


def _copy(source: Path, target: Path, numbers: Mapping[int, int]) -> None:
    """The plan under this study's numbers; other files are shared, as nobody writes to them; the plan comes last."""
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
