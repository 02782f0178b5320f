"""Evaluate a plan for real: inherit, prune, recalibrate, finetune, and keep what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_modules.errors import DataError, PlanError
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.plan import Stage as StagePlan
from lightning_modules.pruning.removal import rebuild
from lightning_modules.pruning.structure import Counts, Keep, dropped
from lightning_modules.pruning.weights import densities, effective_macs, zeros_of
from orchestrator.costs import ratios_of, with_ratios
from orchestrator.search.bounds import costs_before
from orchestrator.search.lab.problem import Problem, seed_of
from orchestrator.search.plans.finished import (
    INT8,
    PLAN,
    Finished,
    finished_weights,
    keep_to_json,
    load_finished,
    nearest_parent,
    read_plan,
    save_plan,
)
from orchestrator.search.plans.lineage import (
    Lineage,
    Link,
    lineage_in,
    made_with,
    recipe_of,
    weights_digest,
)
from orchestrator.search.plans.measurement import Measurement, Proposal, Report
from orchestrator.search.trials.failures import Deadline, sparing_memory
from orchestrator.search.trials.measured import Wanted, by_group, measurement, quantised, with_costs
from orchestrator.search.trials.methods import Method
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.search.trials.run_plan import Ended, planned_rounds, run_plan
from orchestrator.search.trials.working import Working


def begun(
    problem: Problem, weights: Mapping[str, Tensor], keep: Keep, sparse: Sequence[str]
) -> Working:
    """What a trial begins from: the dense units `keep` of its parent with these weights, some of `sparse` at zero."""
    gone = dropped(problem.structure, keep)
    model = (
        rebuild(problem.model, weights, gone, problem.structure.attention).to(problem.device).eval()
    )
    return Working(model, keep, zeros_of(model, sparse))


@dataclass
class Evaluator:
    """Holds what does not change between trials; `models` is the folder of finished plans, the only state.

    Thresholds are read on the dense model's scores: they say how many units stay, whatever the parent, so that costs
    are known before anything is loaded and nothing drifts along a lineage. Which units stay is decided on the weights
    of the moment. `pace` gives the optimizer steps of a round from FLOPs ratio and rounds in all, `mixed` is the number
    of mixed copies of the training data; None: as configured. `told` are the trials that have ended in the study, the
    others' plans are nobody's parents; `may_save` raises where a trial is somebody else's by now.
    """

    problem: Problem
    methods: Mapping[str, Method]
    models: Path
    pace: Callable[[float, int], int | None] = lambda ratio, rounds: None
    mixed: int | None = None
    told: Callable[[], Container[int]] | None = None
    may_save: Callable[[int], None] = lambda number: None
    _known: dict[int, Finished] = field(default_factory=dict, repr=False)
    _costs: dict[Any, dict[str, float]] = field(default_factory=dict, repr=False)

    def __call__(self, proposal: Proposal, number: int, report: Report) -> Measurement:
        """Prune and finetune; see `Evaluate`.

        Errors: PlanError for a plan that removes nothing or empties a group: it is rejected, not a failure.
        TrialTimeoutError, and whatever the model, the task and the data raise.
        """
        problem, study = self.problem, self.problem.settings.study
        if study.trial_timeout is not None:
            problem = replace(problem, check=Deadline(study.trial_timeout, time.monotonic()))
        return sparing_memory(
            lambda tried: self._tried(problem, tried, number, report),
            proposal,
            study.on_out_of_memory,
        )

    def _tried(
        self, problem: Problem, proposal: Proposal, number: int, report: Report
    ) -> Measurement:
        method = self._method(proposal)
        wanted = self.wanted(proposal)
        others = [found for found in self.finished() if found.number != number]
        if (
            (wanted.kept == problem.structure.sizes).all()
            and not wanted.density
            and proposal.activation is None
        ):
            raise PlanError("a plan must remove something; this one keeps all: raise a threshold")
        parent = self._parent(others, wanted)
        seed = seed_of(problem.settings.seed, 2, number)
        before = self._before(proposal, wanted)
        if reason := problem.goals.broken(
            with_ratios(before, ratios_of(before, problem.dense_costs))
        ):
            rejected = measurement(
                problem,
                "rejected",
                parent,
                wanted,
                self._plan(proposal, parent, seed),
                reason=reason,
            )
            return with_costs(rejected, before, problem.dense_costs)
        working = self.inherited(parent)
        alive = problem.structure.counts(working.alive)
        rounds = planned_rounds(
            problem, method, proposal.timing, alive, wanted.kept, wanted.density
        )
        round_steps = self.pace(problem.ratios(wanted.kept)["flops"], rounds)
        proposal = replace(
            proposal, timing=replace(proposal.timing, round_steps=round_steps, mixed=self.mixed)
        )
        plan = self._plan(proposal, parent, seed)
        ended = run_plan(problem, method, plan, working, wanted.kept, wanted.density, report)
        if ended.reason:
            return measurement(
                problem,
                "stopped",
                parent,
                wanted,
                plan,
                ended.rungs,
                ended.reason,
                None,
                ended.spent,
            )
        return self._finish(number, plan, parent, wanted, ended, before)

    def _parent(self, others: list[Finished], wanted: Wanted) -> Finished | None:
        if not self.problem.settings.search.lineage:
            return None
        return nearest_parent(others, self._vector(wanted))

    def _before(self, proposal: Proposal, wanted: Wanted) -> dict[str, float]:
        """As `costs_before`; a latency is measured once for the same counts, which may not pass and fail a bound."""
        level, int8 = proposal.activation, proposal.int8
        key = (wanted.kept.tobytes(), tuple(sorted(wanted.density.items())), level, int8)
        if key not in self._costs:
            self._costs[key] = costs_before(self.problem, wanted.kept, wanted.density, level, int8)
        return self._costs[key]

    def wanted(self, proposal: Proposal) -> Wanted:
        """Counts and densities that the proposal's thresholds mean on the dense model's scores."""
        method, structure = self._method(proposal), self.problem.structure
        kept, density = structure.sizes, {}
        for stage, cut in zip(method.stages, proposal.cuts, strict=True):
            found = stage.counts(cut)
            if isinstance(stage.pruner, UnitPruner):
                kept = found
            else:
                shares = stage.pruner.densities(found)
                density = {name: share for name, share in shares.items() if share < 1.0}
        return Wanted(kept, density)

    def inherited(self, parent: Finished | None) -> Working:
        """The model a trial begins from, and the dense units it still has. Errors: DataError for damaged weights."""
        if parent is None:
            return Working(self.problem.model, self.problem.structure.full())
        problem = self.problem
        weights = finished_weights(
            self.models / str(parent.number), parent, problem.model, problem.structure
        )
        return begun(self.problem, weights, parent.keep, parent.sparse)

    def finished(self) -> list[Finished]:
        """Every whole plan in the folder, also those that other workers or earlier runs left there."""
        there = {
            int(path.parent.name): path.parent
            for path in self.models.glob(f"*/{PLAN}")
            if path.parent.name.isdigit()
        }
        told = there if self.told is None else self.told()
        self._known = {
            number: self._known.get(number) or self.read(there[number])
            for number in sorted(there)
            if number in told
        }
        return list(self._known.values())

    def read(self, folder: Path) -> Finished:
        """The finished plan in a folder. Errors: DataError for one that is damaged, or another trial's."""
        found = load_finished(folder, self.problem.structure, self.problem.weight_names)
        if str(found.number) != folder.name:
            raise DataError(
                f"{folder / PLAN} must be the plan of trial {folder.name}; it is that of {found.number}"
            )
        return found

    @cached_property
    def _dense(self) -> Lineage:
        """The lineage of the dense model: no links."""
        rewound = self.problem.rewound
        early = None if rewound is None else weights_digest(rewound)
        return Lineage(self.problem.dense_digest, early, recipe_of(self.problem.settings))

    def _lineage(
        self,
        number: int,
        plan: Plan,
        parent: Finished | None,
        wanted: Wanted,
        kept: Counts,
        ended: Ended,
    ) -> Lineage:
        """The parent's lineage with this trial as its last link."""
        before = self._dense
        if parent is not None:
            folder = self.models / str(parent.number)
            before = lineage_in(read_plan(folder), folder)
        link = Link(
            number,
            plan.to_json(),
            by_group(self.problem, wanted.kept),
            dict(wanted.density),
            by_group(self.problem, kept),
            ended.rounds,
            weights_digest(ended.working.model),
            made_with(self.problem.device, self.problem.memory_format),
        )
        return replace(before, links=(*before.links, link))

    def _method(self, proposal: Proposal) -> Method:
        return (
            self.methods[proposal.method] if proposal.method else next(iter(self.methods.values()))
        )

    def _vector(self, wanted: Wanted) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What a parent needs to have at least: units per group, then the density of each weight tensor."""
        density = [wanted.density.get(name, 1.0) for name in self.problem.weight_names]
        return np.concatenate([wanted.kept.astype(float), density])

    def _plan(self, proposal: Proposal, parent: Finished | None, seed: int) -> Plan:
        stages = tuple(
            StagePlan(cut.thresholds, cut.rule, stage.settings.plain())
            for stage, cut in zip(self._method(proposal).stages, proposal.cuts, strict=True)
        )
        number = None if parent is None else parent.number
        return Plan(stages, proposal.timing, proposal.activation, proposal.int8, number, seed)

    def _finish(
        self,
        number: int,
        plan: Plan,
        parent: Finished | None,
        wanted: Wanted,
        ended: Ended,
        before: Mapping[str, float],
    ) -> Measurement:
        """Save the model, and measure what it costs as it is: after rounding, guards and regrowth."""
        problem, working = self.problem, ended.working
        structure = problem.structure
        kept = structure.counts(working.alive)
        model = working.model.eval()
        density = densities(model, working.masks)
        found = Wanted(kept, problem.density(model, list(working.masks), plan.activation))
        measured = measurement(
            problem, "completed", parent, found, plan, ended.rungs, "", model, ended.spent
        )
        if (
            "latency_ms" in before and (kept == wanted.kept).all()
        ):  # one measurement: it may not pass and fail a bound
            measured = with_costs(
                measured, {"latency_ms": before["latency_ms"]}, problem.dense_costs
            )
        pruned = problem.activation(plan.activation)
        folder = self.models / str(number)
        if plan.int8:
            measured = quantised(problem, measured, model, folder / INT8, plan)
        if wrong := {
            name: value for name, value in measured.metrics.items() if not math.isfinite(value)
        }:
            raise ValueError(
                f"metrics must be finite; got {wrong}"
            )  # before it is saved: nobody may inherit from it
        document = {
            "format": 4,
            "trial": number,
            "model": problem.settings.model.without("weights", "pretrained").to_json(),
            "inputs": problem.example.to_json(),
            "macs": problem.cost.macs(kept),
            "effective_macs": effective_macs(structure, working.alive, found.density),
            "params": problem.cost.params(kept),
            "validation": dict(measured.metrics),
            "ancestors": [] if parent is None else [*parent.ancestors, parent.number],
            "trained_rounds": ended.rounds,
            "lineage": self._lineage(number, plan, parent, wanted, kept, ended).to_json(),
            "plan": plan.to_json(),
            "keep": keep_to_json(structure, working.alive),
            "density": density,
            # of blocks that differ in size a plan's share is not the share of weights; what was asked is what counts
            "shares": {
                name: max(share, wanted.density.get(name, 0.0)) for name, share in density.items()
            },
            "attention": structure.attention,
            "activation": None if pruned is None else asdict(pruned),
            "dropped": list(dropped(structure, working.alive)),
        }
        self.may_save(number)
        save_plan(folder, document, model)
        return measured
