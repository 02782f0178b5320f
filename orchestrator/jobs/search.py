"""The main job: from settings to a confirmed, exported, logged front of smaller models."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lightning_modules.data.contract import ready_data
from lightning_modules.errors import UserError
from orchestrator.clock import orchestration_share
from orchestrator.jobs.ends import end_of
from orchestrator.jobs.environment import environment
from orchestrator.jobs.explore import Exploration, Explored, StudyParts, parts_of
from orchestrator.jobs.outputs import Outputs, key
from orchestrator.jobs.records import record_study
from orchestrator.jobs.view import write_decisions, write_errors, write_known
from orchestrator.progress import Progress
from orchestrator.results.rows import ConfirmedRow, TrialRow
from orchestrator.results.undertrained import late_gain
from orchestrator.search.confirmation.beside import run_baselines, with_ladders
from orchestrator.search.confirmation.final import Confirmation, confirm_front
from orchestrator.search.confirmation.ladders import LadderStep
from orchestrator.search.confirmation.sharing import HELPED, SHARED, SharedConfirmation, take_part
from orchestrator.search.goals import Reference, study_reference
from orchestrator.search.lab.dense import dense_curve
from orchestrator.search.lab.lab import FinalLab
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.pace.pacing import Clock
from orchestrator.search.parts import check_parts
from orchestrator.search.ready import OVER
from orchestrator.search.studies.decisions import decisions
from orchestrator.search.studies.queue import own_trials
from orchestrator.search.studies.recorded import with_recorded_depth
from orchestrator.search.studies.results import candidates
from orchestrator.search.studies.rungs import rung_rows
from orchestrator.search.studies.study import bind_study
from orchestrator.search.studies.trial import DAMAGED, WARM
from orchestrator.settings import Settings
from orchestrator.tracking import StudyEnd, StudyResults, Tracker
from orchestrator.workers.pool import Crew


def search(settings: Settings) -> Outputs:
    """Search, confirm, export, log; finished work is not done again. Returns `Outputs`.

    The door is `orchestrator.jobs.checked.search`: it shows a study that is complete.
    Errors: UserError, before anything expensive, for every mistake in the configuration.
    """
    begin = time.perf_counter()
    with Progress(quiet=settings.quiet) as progress:
        goals = check_parts(settings)
        settings = with_recorded_depth(settings)
        data = ready_data(settings.data)
        parts = parts_of(settings, goals)
        with parts.leases.leading(lambda line: progress.phase("study", line)):
            bind_study(parts.study, settings)
            parts.study.set_user_attr(OVER, False)
            parts.study.set_user_attr(SHARED, None)
            record_study(parts.tracker, settings, parts.study)
            try:
                final = prepare(settings, data, progress)
                with Crew(settings, parts.study, progress) as crew:
                    look = crew.look if settings.workers > 1 else None
                    outputs = _Job(settings, final, parts, progress, begin, look).run()
            except BaseException as error:
                end: StudyEnd = "failed" if isinstance(error, Exception) else "interrupted"
                parts.tracker.close_study(StudyResults(), end)
                raise
        parts.tracker.close_study(end_of(settings, outputs))
    outputs.show("done", quiet=settings.quiet)
    return outputs


@dataclass(frozen=True)
class _Job:
    """The search and what follows it: confirmation, baselines, outputs.

    `begin` is when the run began. `look` looks after the workers; None where there are none.
    """

    settings: Settings
    final: FinalLab
    parts: StudyParts
    progress: Progress
    begin: float
    look: Callable[[], None] | None

    def run(self) -> Outputs:
        settings = self.settings
        facts = self.final.facts
        study = self.parts.study
        reference = study_reference(settings, facts.goals, facts.dense_metrics, facts.dense_costs)
        write_known(settings, facts, _begun(settings, reference))
        study.set_user_attr("reference", reference.plain())
        explored = self._explored()
        chosen = self._chosen(explored.trials)
        confirmation = self._confirmation(explored, chosen)
        sharing = self._sharing(confirmation, explored)
        if sharing is not None:
            sharing.models(chosen)
        members, dense = confirm_front(confirmation, chosen)
        if sharing is not None:
            sharing.ladders(members)
        baselines, left_out = self._baselines(confirmation, explored, members)
        study.set_user_attr(OVER, True)
        members = with_ladders(facts.goals, members, baselines)
        summary = {
            **self._summary(reference, explored, members),
            **self._beside_dense(members, dense),
            **_free(explored),
            "baselines_left_out": left_out,
            "failed": dict(confirmation.failed),
            "environment": environment(settings),
            **_shares(self.progress, self.parts.tracker, self.begin),
        }
        outputs = Outputs(
            settings.study.folder,
            settings.objectives,
            explored.trials,
            members,
            baselines,
            dense,
            summary,
        )
        return self._written(outputs)

    def _explored(self) -> Explored:
        """The search. Errors: UserError where no trial completed."""
        lab = self.final.lab
        exploration = Exploration(self.settings, lab, self.parts, self.progress, self.look)
        explored = exploration.run(Clock(self.begin))
        curves = explored.methods[0].stages[0].error_curves()
        write_errors(self.settings.study.folder, curves)
        if explored.nothing_left:
            self.progress.phase(
                "search",
                f"every combination of the space was tried, {len(explored.trials)} trials in all",
            )
        _require_completed(explored.trials)
        return explored

    def _written(self, outputs: Outputs) -> Outputs:
        """The outputs, with their files."""
        decided = decisions(self.parts.study, self.final.facts.goals)
        write_decisions(outputs.folder, decided)
        outputs.write(self.settings)
        return outputs

    def _chosen(self, trials: list[TrialRow]) -> list[TrialRow]:
        """The members of the search's front that are confirmed."""
        confirm = self.settings.phases.confirm
        facts = self.final.facts
        return candidates(trials, facts.goals, confirm.tolerance * facts.scale, confirm.max_models)

    def _confirmation(self, explored: Explored, chosen: list[TrialRow]) -> Confirmation:
        """The confirmation, with as many steps as the budget leaves for it."""
        round_steps = None
        if explored.pacing is not None:
            ratios = [row.ratios.get("flops", 1.0) for row in chosen]
            round_steps = explored.pacing.confirming(self.settings.phases, ratios)
        folder = self.settings.study.folder
        return Confirmation(self.final, explored.store, folder, self.progress, round_steps)

    def _sharing(self, confirmation: Confirmation, explored: Explored) -> SharedConfirmation | None:
        """How the processes of the study share the confirmation; None where this one confirms all.

        They need a common folder. A budget in time is one process's, and so is a latency that
        counts: it is not measured beside other work.
        """
        study = self.parts.study
        if not (self.look is not None or study.user_attrs.get(HELPED)):
            return None
        parted = explored.pacing is not None or self.parts.exchange.store is not None
        if parted or self.final.facts.goals.uses("latency_ms"):
            return None
        own_share = partial(take_part, study, confirmation, explored.methods[0])
        return SharedConfirmation(study, confirmation, self.look or own_share)

    def _baselines(
        self, confirmation: Confirmation, explored: Explored, members: list[ConfirmedRow]
    ) -> tuple[list[ConfirmedRow], list[str]]:
        """Rows of the baselines, and the names of the ladders that the budget leaves out."""
        pacing = explored.pacing
        left_out = []

        def afford(
            name: str, ladder: Sequence[LadderStep], confirmed: Sequence[LadderStep]
        ) -> bool:
            if pacing is None:
                return True
            enough = pacing.affords(self.final.lab, ladder, confirmed, confirmation.round_steps)
            if not enough:
                left_out.append(name)
            return enough

        rows = run_baselines(confirmation, explored.methods[0], members, afford)
        return rows, sorted(left_out)

    def _beside_dense(self, members: list[ConfirmedRow], dense: ConfirmedRow) -> dict[str, Any]:
        """What the summary says of the dense model, and of the front beside it."""
        return {
            "smallest": self._smallest(members, dense),
            "dense_as_given": self._dense_as_given(),
            "dense_late_gain": late_gain(dense_curve(self.settings), self.final.facts.goals.sign),
        }

    def _dense_as_given(self) -> float:
        """The test quality of the dense model that everything was cut from.

        The dense row is finetuned as long as the models of the front.
        """
        self.progress.phase("dense", "as given, on test data")
        return self.final.test(self.final.facts.model).metrics[self.final.facts.goals.quality]

    def _smallest(self, members: list[ConfirmedRow], dense: ConfirmedRow) -> dict[str, Any]:
        """The smallest model whose test quality is about that of the dense model.

        That is: within `phases.confirm.tolerance`. Its `trial` is None where there is none.
        """
        facts = self.final.facts
        tolerance = self.settings.phases.confirm.tolerance * facts.scale
        smallest: ConfirmedRow | None = None
        for row in members:
            drop = facts.goals.sign * (dense.test_mean - row.test_mean)
            if drop > tolerance:
                continue
            if smallest is None or row.cost_ratio < smallest.cost_ratio:
                smallest = row
        return {
            "tolerance": tolerance,
            "trial": None if smallest is None else smallest.name,
            "ratio": None if smallest is None else smallest.cost_ratio,
        }

    def _summary(
        self, reference: Reference, explored: Explored, members: list[ConfirmedRow]
    ) -> dict[str, Any]:
        settings = self.settings
        facts = self.final.facts
        goals = facts.goals
        latency = facts.prices.latency
        metrics = []
        costs = []
        for member in members:
            metrics.append({goals.quality: member.test_mean, **member.metrics})
            costs.append(member.costs)
        imported = 0
        own = 0
        for row in explored.trials:
            if row.kind == WARM:
                imported += 1
            elif row.state != DAMAGED:
                own += 1
        budget = settings.study.budget
        rungs = rung_rows(own_trials(self.parts.study), goals, facts.axis)
        return {
            **_begun(settings, reference),
            "key": key(settings),
            "trials": own,
            "taken_over": imported,
            "states": dict(Counter([row.state for row in explored.trials])),
            "hypervolume": reference.volume(metrics, costs),
            **({} if latency is None else {"latency_model_error": latency.mean_error}),
            "phases": dict(self.progress.seconds),
            "exhausted": explored.nothing_left,
            "budget": None if budget is None else budget.text,
            "rungs": [asdict(row) for row in rungs],
        }


def _begun(settings: Settings, reference: Reference) -> dict[str, Any]:
    """The part of summary.json that is known when the search begins."""
    begun: dict[str, Any] = {"reference": reference.plain()}
    if settings.command is not None:
        begun["command"] = settings.command
    return begun


def _free(explored: Explored) -> dict[str, Any]:
    """The share of each group's units that the others can stand in for, where it is known."""
    free = explored.methods[0].stages[0].free()
    return {} if free is None else {"free": free}


def _shares(progress: Progress, tracker: Tracker, begin: float) -> dict[str, float]:
    """Where the time went."""
    total = time.perf_counter() - begin
    return {
        "seconds": total,
        "orchestration_share": orchestration_share(progress.seconds, total),
        "tracking_share": tracker.seconds / total,
    }


def _require_completed(rows: list[TrialRow]) -> None:
    """Errors: UserError with the most common reason when no trial completed."""
    states = [row.state for row in rows]
    if "completed" in states:
        return
    reasons = [row.reason for row in rows if row.reason]
    most = max(set(reasons), key=reasons.count) if reasons else "none gave a reason"
    raise UserError(
        f"a front needs completed trials; none of {len(rows)} is: {most} ({reasons.count(most)} "
        "times)"
    )
