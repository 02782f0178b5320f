"""The main job: from settings to a confirmed, exported, logged front of smaller models."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_modules.errors import UserError
from orchestrator.clock import orchestration_share
from orchestrator.files import require_writable
from orchestrator.jobs.outputs import Outputs, finished_before, key
from orchestrator.jobs.records import record_study, record_trial
from orchestrator.progress import Progress
from orchestrator.report.rows import FrontRow, TrialRow
from orchestrator.search.evaluate import Evaluator
from orchestrator.search.final import confirm_front, run_baselines
from orchestrator.search.front import hypervolume
from orchestrator.search.methods import Method, check_method, prepare_method
from orchestrator.search.prepare import prepare
from orchestrator.search.problem import Problem, optimization, quality_direction
from orchestrator.search.results import front, rows, trial_row
from orchestrator.search.sensitivity import profile
from orchestrator.search.space import Choices, Terrain
from orchestrator.search.study import (
    Direction,
    FrozenTrial,
    Rules,
    Study,
    done,
    enqueue_chain,
    open_study,
    remove_orphans,
    sampler,
    take_over_interrupted,
)
from orchestrator.search.study import search as run_trials
from orchestrator.settings import Settings
from orchestrator.tracking import Tracker


@dataclass(frozen=True)
class Parts:
    """What the configuration names and this job calls."""

    space: Any
    stopping: Any
    tracker: Tracker
    study: Study


def search(settings: Settings) -> Outputs:
    """Search, confirm, export, log; what is there already is not done again. See `Outputs` for what is returned.

    Errors: UserError, before anything expensive, for whatever the configuration has wrong.
    """
    require_writable(settings.study.folder)
    if (before := finished_before(settings)) is not None:
        before.show("this study is complete; more trials: study.n_trials=...")
        return before
    begin = time.perf_counter()
    with Progress() as progress:
        direction = quality_direction(settings)
        data = settings.data.build()
        data.setup()
        parts = _parts(settings, direction)
        record_study(parts.tracker, settings, parts.study)
        try:
            problem = prepare(settings, data, progress)
            outputs = _search(problem, parts, progress, begin)
        except BaseException as error:
            parts.tracker.close_study({}, [], "failed" if isinstance(error, Exception) else "interrupted")
            raise
        summary = outputs.summary
        parts.tracker.close_study(
            {name: value for name, value in summary.items() if isinstance(value, int | float)}, outputs.files()
        )
    outputs.show("done")
    return outputs


def _parts(settings: Settings, direction: Direction) -> Parts:
    """Everything that a name in the configuration stands for, built before anything is paid for."""
    directions: list[Direction] = [direction]
    directions += ["minimize"] * len(settings.objectives.costs)
    space, stopping = settings.space.build(), settings.stopping.build()
    check_method(settings, space)
    sampler(settings.sampler, settings.seed)
    for how in (settings.phases.train, settings.phases.finetune):
        optimization(how).check()
    optimization(settings.phases.finetune, settings.phases.confirm.lr_factor).check()
    tracker = settings.tracking.build()
    study = open_study(settings, directions)
    if "id" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
    return Parts(space, stopping, tracker, study)


def _search(problem: Problem, parts: Parts, progress: Progress, begin: float) -> Outputs:
    settings, study = problem.settings, parts.study
    quality = settings.objectives.quality
    axis = settings.objectives.axis
    methods, terrains = _terrains(problem, parts.space.needs_profile, progress)
    space = Choices(parts.space, settings.method, terrains)
    evaluator = Evaluator(problem, methods, settings.study.folder / "trials")
    chain, ways = settings.search.chain, list(terrains.values())
    enqueue_chain(study, space, ways, chain.targets(settings.objectives.max_flops_ratio), chain.equal_loss)
    if taken := take_over_interrupted(study):
        progress.tick(f"{taken} interrupted trials begin again")
    remove_orphans(study, evaluator.models)
    n_trials = settings.study.n_trials
    progress.phase("search", f"{n_trials} trials, {done(study)} done before")

    def on_trial(trial: FrozenTrial) -> None:
        found = rows(study, quality, axis)
        record_trial(parts.tracker, settings, problem, trial)
        progress.eta(_seconds_left(problem, found, n_trials))
        progress.trial(trial_row(trial, quality, axis), front(found, problem.sign), len(found), n_trials)

    rules = Rules(
        quality,
        problem.sign,
        problem.dense[quality],
        settings.objectives.costs,
        parts.stopping,
        settings.sampler,
        settings.seed,
    )
    run_trials(study, space, ways[0], evaluator, rules, n_trials, on_trial)
    found = rows(study, quality, axis)
    _require_completed(found)
    members, dense = confirm_front(problem, evaluator, found, progress)
    baselines = run_baselines(problem, next(iter(methods.values())), members, progress)
    outputs = Outputs(
        settings.study.folder,
        quality,
        found,
        members,
        baselines,
        dense,
        _summary(settings, found, members, progress, parts.tracker.seconds, time.perf_counter() - begin),
    )
    outputs.write(settings)
    return outputs


def _terrains(problem: Problem, profiled: bool, progress: Progress) -> tuple[dict[str, Method], dict[str, Terrain]]:
    """Each method made ready and, where the space asks for it, its sensitivity profile; by the methods' names."""
    methods: dict[str, Method] = {}
    terrains: dict[str, Terrain] = {}
    for way in problem.settings.method.choices():
        method = methods[way.name] = prepare_method(problem, way)
        sensitivity = None
        if profiled:
            progress.phase(
                "sensitivity", f"{way.name}: {len(method.stages[0].pruner.structure.groups)} groups, each alone"
            )
            sensitivity = profile(problem, method, lambda done, of: progress.tick(f"{done} of {of} groups"))
        terrains[way.name] = method.terrain(problem, sensitivity)
    return methods, terrains


def _summary(
    settings: Settings,
    found: list[TrialRow],
    members: list[FrontRow],
    progress: Progress,
    tracked: float,
    total: float,
) -> dict[str, Any]:
    bounds = settings.objectives
    quality, ratios = [row.test_mean for row in members], [row.cost_ratio for row in members]
    return {
        "key": key(settings),
        "trials": len(found),
        "states": dict(Counter(row.state for row in found)),
        "hypervolume": hypervolume(quality, ratios, bounds.reference_quality, bounds.least_flops_ratio),
        "reference": {"quality": bounds.reference_quality, f"{bounds.axis}_ratio": [bounds.least_flops_ratio, 1.0]},
        "seconds": total,
        "phases": dict(progress.seconds),
        "orchestration_share": orchestration_share(progress.seconds, total),
        "tracking_share": tracked / total,
    }


def _seconds_left(problem: Problem, found: list[TrialRow], n_trials: int) -> float:
    """Remaining units of finetuning, each at the price of a unit at the mean FLOPs ratio of the chain's range."""
    how, finetune, chain = (
        problem.settings.phases.confirm,
        problem.settings.phases.finetune,
        problem.settings.search.chain,
    )
    trained = [row for row in found if row.rung and row.cost_ratio]
    if not trained:
        return 0.0
    ratios = np.array([row.cost_ratio for row in trained], dtype=float)
    prices = np.array([row.seconds / row.rung for row in trained])
    slope, base = np.polyfit(ratios, prices, 1) if np.ptp(ratios) > 0.05 else (0.0, prices.mean())
    mean_ratio = (chain.largest - chain.smallest) / math.log(chain.largest / chain.smallest)
    per_unit = float(np.clip(base + slope * mean_ratio, prices.min(), prices.max()))
    confirmed = how.max_models * len(how.seeds) * how.units
    ladders = len(how.baselines) * how.max_baseline_models * (len(how.seeds) * how.units + finetune.units)
    return per_unit * ((n_trials - len(found)) * finetune.units + confirmed + ladders)


def _require_completed(found: list[TrialRow]) -> None:
    """Errors: UserError with the most common reason when no trial came through."""
    if any(row.state == "completed" for row in found):
        return
    reasons = [row.reason for row in found if row.reason]
    most = max(set(reasons), key=reasons.count) if reasons else "none gave a reason"
    raise UserError(f"a front needs completed trials; none of {len(found)} is: {most} ({reasons.count(most)} times)")
