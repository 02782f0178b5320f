"""Evaluate a plan for real: inherit, prune, recalibrate, finetune, and keep what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import nn

from lightning_modules.errors import PlanError
from lightning_modules.phases.latency import latency_ms
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.criteria import Criterion
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.removal import rebuild, remove
from lightning_modules.pruning.structure import Counts, Keep
from lightning_modules.pruning.thresholds import Scores
from orchestrator.search.finished import (
    PLAN,
    WEIGHTS,
    Finished,
    keep_to_json,
    load_finished,
    nearest_parent,
    save_plan,
)
from orchestrator.search.measurement import Measurement, Proposal, Report, Rung
from orchestrator.search.problem import Problem, example_input, seed_of


@dataclass
class Evaluator:
    """Holds what does not change between trials; `models` is the folder of finished plans, the only state.

    Thresholds are read on the dense model's scores: they say how many units stay, whatever the parent, so that costs
    are known before anything is loaded and nothing drifts along a lineage. Which units stay is decided on the weights
    of the moment.
    """

    problem: Problem
    criterion: Criterion
    dense_scores: Scores
    models: Path
    _known: dict[int, Finished] = field(default_factory=dict, repr=False)

    def __call__(self, proposal: Proposal, number: int, report: Report) -> Measurement:
        """Prune and finetune; see `Evaluate`. Errors: PlanError for a plan that removes nothing or empties a group."""
        problem = self.problem
        full = problem.structure.full()
        kept = thresholds.counts(problem.structure, self.dense_scores, full, proposal.thresholds, proposal.rule)
        if (kept == problem.structure.sizes).all():
            raise PlanError("a plan must remove at least one unit; this one keeps all: raise a threshold")
        parent = nearest_parent(self.finished(), kept) if problem.settings.search.lineage else None
        plan = self._plan(proposal, parent, seed_of(problem.settings.seed, 2, number))
        if reason := self._over_budget(kept):
            return self._measurement("rejected", parent, kept, plan, reason=reason)
        model, alive = self.inherited(parent)
        model, keep, rungs, reason = self._prune(model, alive, kept, plan, report)
        if reason:
            return self._measurement("stopped", parent, kept, plan, rungs, reason)
        document = self.document(number, keep, plan, parent, rungs)
        save_plan(self.models / str(number), document, model)
        return self._measurement("completed", parent, kept, plan, rungs, model=model)

    def inherited(self, parent: Finished | None) -> tuple[nn.Module, Keep]:
        """The model a trial begins from, and the dense units it still has."""
        if parent is None:
            return self.problem.model, self.problem.structure.full()
        weights = load_file(self.models / str(parent.number) / WEIGHTS)
        return rebuild(self.problem.model, weights).to(self.problem.device).eval(), parent.keep

    def finished(self) -> list[Finished]:
        """Every whole plan in the folder, also those that other workers or earlier runs left there."""
        for path in sorted(self.models.glob(f"*/{PLAN}")):
            if path.parent.name.isdigit() and int(path.parent.name) not in self._known:
                self._known[int(path.parent.name)] = load_finished(path.parent, self.problem.structure)
        return list(self._known.values())

    def document(
        self, number: int, keep: Keep, plan: Plan, parent: Finished | None, rungs: tuple[Rung, ...]
    ) -> dict[str, Any]:
        """plan.json: all that is needed to rebuild the model, and where it came from."""
        structure = self.problem.structure
        kept = structure.counts(keep)
        return {
            "format": 1,
            "trial": number,
            "model": self.problem.settings.model.without("weights", "pretrained").to_json(),
            "input_shape": list(self.problem.data.input_shape),
            "macs": self.problem.cost.macs(kept),
            "params": self.problem.cost.params(kept),
            "validation": dict(rungs[-1][1]) if rungs else {},
            "ancestors": [] if parent is None else [*parent.ancestors, parent.number],
            "plan": plan.to_json(),
            "keep": keep_to_json(structure, keep),
        }

    def _plan(self, proposal: Proposal, parent: Finished | None, seed: int) -> Plan:
        return Plan(
            proposal.thresholds,
            proposal.rule,
            self.problem.settings.method.criterion.to_json(),
            proposal.schedule,
            proposal.steps,
            proposal.units,
            None if parent is None else parent.number,
            seed,
        )

    def _over_budget(self, kept: Counts) -> str:
        ratios, bounds = self.problem.ratios(kept), self.problem.settings.objectives
        for name, bound in {"flops": bounds.max_flops_ratio, "params": bounds.max_params_ratio}.items():
            if bound is not None and ratios[name] > bound:
                return f"{name}_ratio {ratios[name]:.4f} is over objectives.max_{name}_ratio {bound:g}"
        return ""

    def _prune(
        self, model: nn.Module, alive: Keep, kept: Counts, plan: Plan, report: Report
    ) -> tuple[nn.Module, Keep, tuple[Rung, ...], str]:
        """The schedule's pruning steps, each followed by recalibration and finetuning; rungs count after the last."""
        problem, before = self.problem, self.problem.structure.counts(alive)
        rungs: list[Rung] = []
        stop = ""
        for step in range(1, plan.steps + 1):
            now = thresholds.at_step(before, kept, plan.schedule, step, plan.steps)
            if (now == problem.structure.counts(alive)).all() and step < plan.steps:
                continue
            restricted = problem.structure.restrict(alive)
            scores = problem.score(self.criterion, model, restricted, plan.seed)
            keep = thresholds.choose(problem.structure, scores, alive, now)
            model, alive = remove(model, restricted, keep), keep
            seed = seed_of(plan.seed, step)
            with problem.timed("finetune"):
                problem.recalibrate(model, problem.settings.phases.finetune.recalibration_batches, seed)

            def on_unit(unit: int, metrics: Mapping[str, float], last: bool = step == plan.steps) -> bool:
                nonlocal stop
                if not last:
                    return True
                rungs.append((unit, dict(metrics)))
                stop = report(unit, problem.ratios(kept)["flops"], metrics) or ""
                return not stop

            problem.finetune(model, plan.units, seed, on_unit)
        return model.eval(), alive, tuple(rungs), stop if rungs and rungs[-1][0] < plan.units else ""

    def _measurement(
        self,
        state: Any,
        parent: Finished | None,
        kept: Counts,
        plan: Plan,
        rungs: tuple[Rung, ...] = (),
        reason: str = "",
        model: nn.Module | None = None,
    ) -> Measurement:
        problem = self.problem
        costs = {"flops": 2.0 * problem.cost.macs(kept), "params": float(problem.cost.params(kept))}
        if model is not None:
            costs["size_mb"] = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6
        if model is not None and "latency_ms" in problem.settings.objectives.costs:
            with problem.timed("evaluation"):
                costs["latency_ms"] = latency_ms(model, example_input(problem.data).to(problem.device))
        groups = [group.name for group in problem.structure.groups]
        return Measurement(
            state=state,
            parent=None if parent is None else parent.number,
            costs=costs,
            ratios=problem.ratios(kept),
            kept=dict(zip(groups, np.asarray(kept).tolist(), strict=True)),
            rungs=rungs,
            reason=reason,
            plan=plan.to_json(),
        )
