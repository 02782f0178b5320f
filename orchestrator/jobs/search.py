"""The main job: from settings to a confirmed, exported, logged front of smaller models."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning_modules.data.contract import set_up
from lightning_modules.errors import UserError
from orchestrator.clock import orchestration_share
from orchestrator.jobs.ends import end_of
from orchestrator.jobs.explore import Parts, explore, parts_of
from orchestrator.jobs.outputs import Outputs, key
from orchestrator.jobs.records import record_study
from orchestrator.progress import Progress
from orchestrator.results.rows import ConfirmedRow, TrialRow
from orchestrator.search.confirmation.final import confirm_front, run_baselines
from orchestrator.search.confirmation.ladders import Rung
from orchestrator.search.goals import Reference, reference_of
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.lab.problem import Problem
from orchestrator.search.parts import check_parts
from orchestrator.search.ready import OVER
from orchestrator.search.studies.queue import own_trials
from orchestrator.search.studies.recorded import with_recorded_depth
from orchestrator.search.studies.results import candidates
from orchestrator.search.studies.rungs import rung_rows
from orchestrator.search.studies.study import bind_study
from orchestrator.search.studies.trial import DAMAGED, WARM
from orchestrator.settings import Settings
from orchestrator.tracking import Tracker


def search(settings: Settings) -> Outputs:
    """Search, confirm, export, log; what is there already is not done again. See `Outputs` for what is returned.

    The door is `orchestrator.jobs.checked.search`: it shows a study that is complete.
    Errors: UserError, before anything expensive, for whatever the configuration has wrong.
    """
    begin = time.perf_counter()
    with Progress() as progress:
        goals = check_parts(settings)
        settings = with_recorded_depth(settings)
        data = settings.data.build()
        set_up(data)
        parts = parts_of(settings, goals)
        with parts.leases.leading(lambda line: progress.phase("study", line)):
            bind_study(parts.study, settings)
            parts.study.set_user_attr(OVER, False)
            record_study(parts.tracker, settings, parts.study)
            try:
                problem = prepare(settings, data, progress)
                outputs = _search(problem, parts, progress, begin)
            except BaseException as error:
                parts.tracker.close_study(
                    {}, [], "failed" if isinstance(error, Exception) else "interrupted"
                )
                raise
        parts.tracker.close_study(*end_of(outputs))
    outputs.show("done")
    return outputs


def _search(problem: Problem, parts: Parts, progress: Progress, begin: float) -> Outputs:
    settings = problem.settings
    reference = reference_of(settings, problem.goals, problem.dense, problem.dense_costs)
    parts.study.set_user_attr("reference", reference.plain())
    explored = explore(problem, parts, progress, begin)
    found, evaluator, pacing = explored.found, explored.evaluator, explored.pacing
    how = settings.phases.confirm
    if explored.nothing_left:
        progress.phase(
            "search", f"every combination of the space was tried, {len(found)} trials in all"
        )
    _require_completed(found)
    chosen = candidates(found, problem.goals, how.tolerance * problem.scale, how.max_models)
    ratios = [row.ratios.get("flops", 1.0) for row in chosen]
    round_steps = None if pacing is None else pacing.confirming(problem, ratios)
    members, dense, failed = confirm_front(problem, evaluator, chosen, progress, round_steps)
    first = next(iter(evaluator.methods.values()))
    left_out: list[str] = []

    def afford(name: str, rungs: Sequence[Rung], confirmed: Sequence[Rung]) -> bool:
        enough = pacing is None or pacing.affords(problem, rungs, confirmed, round_steps)
        left_out.extend([] if enough else [name])
        return enough

    baselines, broken = run_baselines(problem, first, members, progress, afford, round_steps)
    summary = {
        **_summary(problem, reference, found, members, progress),
        "exhausted": explored.nothing_left,
        "budget": None if settings.study.budget is None else settings.study.budget.text,
        "baselines_left_out": sorted(left_out),
        "failed": failed | broken,
        "rungs": [
            asdict(row) for row in rung_rows(own_trials(parts.study), problem.goals, problem.axis)
        ],
        **_shares(progress, parts.tracker, begin),
    }
    outputs = Outputs(
        settings.study.folder, settings.objectives, found, members, baselines, dense, summary
    )
    outputs.write(settings)
    return outputs


def _summary(
    problem: Problem,
    reference: Reference,
    found: list[TrialRow],
    members: list[ConfirmedRow],
    progress: Progress,
) -> dict[str, Any]:
    latency, goals = problem.prices.latency, problem.goals
    metrics = [{goals.quality: row.test_mean, **row.metrics} for row in members]
    return {
        "key": key(problem.settings),
        "trials": len([row for row in found if row.kind != WARM and row.state != DAMAGED]),
        "taken_over": len([row for row in found if row.kind == WARM]),
        "states": dict(Counter(row.state for row in found)),
        "hypervolume": reference.volume(metrics, [row.costs for row in members]),
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


def _require_completed(found: list[TrialRow]) -> None:
    """Errors: UserError with the most common reason when no trial came through."""
    if any(row.state == "completed" for row in found):
        return
    reasons = [row.reason for row in found if row.reason]
    most = max(set(reasons), key=reasons.count) if reasons else "none gave a reason"
    raise UserError(
        f"a front needs completed trials; none of {len(found)} is: {most} ({reasons.count(most)} times)"
    )
