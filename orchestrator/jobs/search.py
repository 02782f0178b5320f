"""The main job: from settings to a confirmed, exported, logged front of smaller models."""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightning_modules.errors import UserError
from orchestrator.clock import orchestration_share
from orchestrator.files import require_writable
from orchestrator.jobs.outputs import Outputs, finished_before, key
from orchestrator.jobs.records import exchange_of, record_ended, record_study, record_trial, send_waiting, tracker_of
from orchestrator.jobs.workers import Workers
from orchestrator.progress import Progress
from orchestrator.report.rows import FrontRow, TrialRow
from orchestrator.search.damaged import redo_damaged
from orchestrator.search.dense import dense_folder
from orchestrator.search.evaluate import Evaluator
from orchestrator.search.exchange import Exchange
from orchestrator.search.final import confirm_front, run_baselines
from orchestrator.search.given import read_plans
from orchestrator.search.goals import Goals, Reference, goals_of, reference_of
from orchestrator.search.ladders import Rung
from orchestrator.search.leases import Leases
from orchestrator.search.lineage import weights_digest
from orchestrator.search.loop import AHEAD, supply
from orchestrator.search.loop import search as run_trials
from orchestrator.search.methods import check_method
from orchestrator.search.orphans import remove_orphans
from orchestrator.search.pacing import CONFIRMING, Pacing, Plans, pacing_of
from orchestrator.search.prepare import prepare
from orchestrator.search.problem import Problem, optimization
from orchestrator.search.queue import WANTED, done, enqueue_chain, enqueue_plans, own_trials, take_over_interrupted
from orchestrator.search.ready import DENSE, OVER, make_ready
from orchestrator.search.results import candidates, front, rows, trial_row
from orchestrator.search.rungs import columns as rung_columns
from orchestrator.search.rungs import rung_rows
from orchestrator.search.samplers import check_sampler, exhausted
from orchestrator.search.storage import readable
from orchestrator.search.study import bind_study, open_study
from orchestrator.search.trial import DAMAGED, WARM, FrozenTrial, Study
from orchestrator.search.warm_start import check_warm_start, filled, take_over
from orchestrator.settings import Settings
from orchestrator.tracking import Tracker


@dataclass(frozen=True)
class Parts:
    """What the configuration names and this job calls."""

    space: Any
    stopping: Any
    tracker: Tracker
    study: Study
    leases: Leases
    exchange: Exchange


def search(settings: Settings) -> Outputs:
    """Search, confirm, export, log; what is there already is not done again. See `Outputs` for what is returned.

    Errors: UserError, before anything expensive, for whatever the configuration has wrong.
    """
    require_writable(settings.study.folder)
    if (before := finished_before(settings)) is not None:
        more = "more trials: study.n_trials=..." if settings.study.paced is None else "more time: study.budget=..."
        more = "every combination was tried" if before.summary.get("exhausted") else more
        before.show(f"this study is complete; {more}")
        send_waiting(settings)
        return before
    begin = time.perf_counter()
    with Progress() as progress:
        goals = goals_of(settings)
        data = settings.data.build()
        data.setup()
        parts = parts_of(settings, goals)
        with parts.leases.leading():
            bind_study(parts.study, settings)
            parts.study.set_user_attr(OVER, False)
            record_study(parts.tracker, settings, parts.study)
            try:
                problem = prepare(settings, data, progress)
                outputs = _search(problem, parts, progress, begin)
            except BaseException as error:
                parts.tracker.close_study({}, [], "failed" if isinstance(error, Exception) else "interrupted")
                raise
        summary = outputs.summary
        parts.tracker.close_study(
            {
                **{name: value for name, value in summary.items() if isinstance(value, int | float)},
                **{f"reference_{name}": value for name, value in summary["reference"].items()},
                **rung_columns(outputs.rungs()),
            },
            outputs.files(),
        )
    outputs.show("done")
    return outputs


def parts_of(settings: Settings, goals: Goals) -> Parts:
    """Everything that a name in the configuration stands for, built before anything is paid for."""
    space, stopping = settings.space.build(), settings.stopping.build()
    check_method(settings, space)
    check_sampler(settings.sampler, goals.directions)
    for how in (settings.phases.train, settings.phases.finetune):
        optimization(how).check()
    optimization(settings.phases.finetune, settings.phases.confirm.lr_factor).check()
    tracker = tracker_of(settings)
    with readable(settings):
        study = open_study(settings, goals.directions)
    check_warm_start(settings, study)
    read_plans(settings)
    if "id" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
    leases, exchange = Leases(study, settings.study.lease), exchange_of(settings, study)
    return Parts(space, stopping, tracker, study, leases, exchange)


@dataclass(frozen=True)
class Explored:
    """All trials, and what they were made with; `nothing_left` says that every combination of the space was tried."""

    found: list[TrialRow]
    evaluator: Evaluator
    pacing: Pacing | None
    nothing_left: bool


def _search(problem: Problem, parts: Parts, progress: Progress, begin: float) -> Outputs:
    settings = problem.settings
    reference = reference_of(settings.objectives, problem.goals, problem.dense, problem.dense_costs)
    parts.study.set_user_attr("reference", reference.plain())
    explored = explore(problem, parts, progress, begin)
    found, evaluator, pacing = explored.found, explored.evaluator, explored.pacing
    how = settings.phases.confirm
    if explored.nothing_left:
        progress.phase("search", f"every combination of the space was tried, {len(found)} trials in all")
    _require_completed(found)
    chosen = candidates(found, problem.goals, how.tolerance, how.max_models)
    ratios = [row.flops_ratio or 1.0 for row in chosen]
    unit_steps = None if pacing is None else pacing.confirming(problem, ratios)
    members, dense = confirm_front(problem, evaluator, chosen, progress, unit_steps)
    first = next(iter(evaluator.methods.values()))
    left_out: list[str] = []

    def afford(name: str, rungs: Sequence[Rung], confirmed: Sequence[Rung]) -> bool:
        enough = pacing is None or pacing.affords(problem, rungs, confirmed, unit_steps)
        left_out.extend([] if enough else [name])
        return enough

    baselines = run_baselines(problem, first, members, progress, afford, unit_steps)
    summary = {
        **_summary(problem, reference, found, members, progress),
        "exhausted": explored.nothing_left,
        "budget": None if settings.study.budget is None else settings.study.budget.text,
        "baselines_left_out": sorted(left_out),
        "rungs": [asdict(row) for row in rung_rows(own_trials(parts.study), problem.goals, problem.axis)],
        **_shares(progress, parts.tracker, begin),
    }
    outputs = Outputs(settings.study.folder, settings.objectives, found, members, baselines, dense, summary)
    outputs.write(settings)
    return outputs


def explore(
    problem: Problem,
    parts: Parts,
    progress: Progress,
    begin: float,
    now: Callable[[], float] = time.perf_counter,
    confirming: float = CONFIRMING,
) -> Explored:
    """The search without what follows it: the chain, then trials around it.

    `begin` is when the run began by the clock `now`; of a budget in time the share `confirming` is left for later.
    """
    settings, study = problem.settings, parts.study
    goals, whole = problem.goals, problem.dense_costs
    ready = make_ready(problem, parts.space, settings.study.folder / "trials", progress)
    space, evaluator, ways = ready.space, ready.evaluator, ready.terrains
    chain = settings.search.chain
    if taken := take_over(study, space, ways[0], evaluator):
        progress.phase("warm start", f"{taken} finished plans of study {settings.search.warm_start}")
    pacing = pacing_of(Plans(evaluator, space, ways[0]), study, begin, progress, now, confirming)
    targets = chain.targets(settings.objectives.max_flops_ratio) if pacing is None else pacing.targets
    evaluator.pace = evaluator.pace if pacing is None else pacing.pace
    finetune = settings.phases.finetune
    usual = [float(finetune.units * finetune.unit_steps)] * len(targets)
    granularities = [stage.granularity for stage in settings.method.choices()[0].stages()]
    rung_steps = usual if pacing is None else pacing.rung_steps
    stands = filled(study, space, ways[0], evaluator, granularities, rung_steps)
    enqueue_chain(study, space, ways, targets, chain.equal_loss, stands)
    enqueue_plans(study, read_plans(settings))
    trials = ready.trials(study, parts.stopping, parts.leases, parts.exchange)
    if taken := take_over_interrupted(study, parts.leases):
        progress.tick(f"{taken} interrupted trials begin again")
    remove_orphans(study, evaluator.models)
    for line in redo_damaged(study, evaluator):
        progress.phase("damaged", line)
    parts.exchange.fetch()
    parts.exchange.publish_all()
    record_ended(parts.tracker, settings, problem, study)
    n_trials = settings.study.n_trials if pacing is None else sys.maxsize
    asked = f"{n_trials} trials" if pacing is None else pacing.words
    progress.phase("search", f"{asked}, {done(study)} done before")

    def on_trial(trial: FrozenTrial) -> None:
        found = rows(study, goals, whole)
        mine = [row for row in found if row.kind != WARM and row.state != DAMAGED]
        record_trial(parts.tracker, settings, problem, trial)
        left = None if pacing is None else pacing.seconds_left()
        progress.eta(_seconds_left(problem, mine, n_trials) if left is None else left)
        total = n_trials if pacing is None else max(len(mine), len(targets))
        progress.trial(trial_row(trial, goals, whole), front(found, goals), len(mine), total)

    study.set_user_attr(WANTED, n_trials)
    parts.exchange.publish_dense(dense_folder(settings))
    study.set_user_attr(DENSE, weights_digest(problem.model))  # from here on others may help
    if settings.workers > 1:
        with progress.timed("workers"), Workers(settings, study, leads=True) as workers:
            supply(trials, n_trials, on_trial, lambda: workers.look(progress))
    else:
        paced = (lambda: True, AHEAD) if pacing is None else (pacing.pace.more, 1)
        run_trials(trials, n_trials, on_trial, *paced)
    parts.leases.require_lead()
    record_ended(parts.tracker, settings, problem, study)  # by helpers who began before this process looked
    study.set_user_attr(OVER, True)
    parts.exchange.fetch()
    nothing_left = exhausted(study, trials.distributions)
    return Explored(rows(study, goals, whole), evaluator, pacing, nothing_left)


def _summary(
    problem: Problem,
    reference: Reference,
    found: list[TrialRow],
    members: list[FrontRow],
    progress: Progress,
) -> dict[str, Any]:
    latency, goals = problem.latency, problem.goals
    metrics = [{goals.quality: row.test_mean, **row.metrics} for row in members]
    return {
        "key": key(problem.settings),
        "trials": len([row for row in found if row.kind != WARM and row.state != DAMAGED]),
        "taken_over": len([row for row in found if row.kind == WARM]),
        "states": dict(Counter(row.state for row in found)),
        "hypervolume": reference.volume(metrics, [vars(row) for row in members]),
        "reference": reference.plain(),
        **({} if latency is None else {"latency_model_error": latency.mean_error}),
        "phases": dict(progress.seconds),
    }


def _shares(progress: Progress, tracker: Tracker, begin: float) -> dict[str, float]:
    """Where the time went."""
    total = time.perf_counter() - begin
    return {
        "seconds": total,
        "orchestration_share": orchestration_share(progress.seconds, total),
        "tracking_share": tracker.seconds / total,
    }


def _seconds_left(problem: Problem, found: list[TrialRow], n_trials: int) -> float:
    """Remaining units of finetuning, each at the price of a unit at the mean FLOPs ratio of the chain's range."""
    how, finetune, chain = (
        problem.settings.phases.confirm,
        problem.settings.phases.finetune,
        problem.settings.search.chain,
    )
    trained = [row for row in found if row.rung and row.flops_ratio]
    if not trained:
        return 0.0
    ratios = np.array([row.flops_ratio for row in trained], dtype=float)
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
