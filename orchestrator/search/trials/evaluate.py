"""Evaluate a plan for real: inherit, prune, recalibrate, finetune, and keep what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Plan, by_group
from lightning_modules.pruning.removal import rebuild
from lightning_modules.pruning.structure import Keep, dropped
from lightning_modules.pruning.weights import densities, effective_macs, zeros_of
from lightning_modules.tasks.whole import Whole
from orchestrator.costs import ratios_of, with_ratios
from orchestrator.search.bounds import costs_before
from orchestrator.search.lab.lab import Lab
from orchestrator.search.plans.finished import Finished, keep_to_json
from orchestrator.search.plans.lineage import (
    Lineage,
    Link,
    made_with,
    method_key,
    recipe_of,
    weights_digest,
)
from orchestrator.search.plans.measurement import Measurement, Report
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.trials.allocation_search import AllocationSearch
from orchestrator.search.trials.failures import Deadline, sparing_memory
from orchestrator.search.trials.measured import as_exported, measurement, with_costs
from orchestrator.search.trials.run_plan import Outcome, planned_rounds, run_plan
from orchestrator.search.trials.working import Working
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import MethodSettings, Settings
from orchestrator.settings.budget import Budget

FORMAT = 5
"""Version of the format of `plan.json`."""
RoundSteps = Callable[[float, int], int | None]
"""Maps (FLOPs ratio, rounds of finetuning) to the optimizer steps of a round.

None: as configured.
"""


def begun(lab: Lab, weights: Mapping[str, Tensor], keep: Keep, sparse: Sequence[str]) -> Working:
    """What a trial begins from: units `keep` of the dense model with its parent's weights.

    Some of the `sparse` tensors are at zero.
    """
    structure = lab.facts.structure
    removed = dropped(structure, keep)
    model = rebuild(lab.facts.model, weights, removed, structure.attention)
    model = model.to(lab.device).eval()
    return Working(model, keep, zeros_of(model, sparse))


@dataclass(frozen=True)
class TrialRecipe:
    """What trials of a study have in common.

    `methods` are those that plans name, by their names. `architecture` builds the dense network,
    `dense` is the lineage of its weights, without a link. With `lineage` a trial begins from the
    nearest finished plan. `timeout` is the longest that a trial may take.
    """

    methods: Mapping[str, MethodSettings]
    architecture: Mapping[str, Any]
    dense: Lineage
    lineage: bool = True
    timeout: Budget | None = None


def trial_recipe(settings: Settings, lab: Lab) -> TrialRecipe:
    """The recipe of the study with these settings."""
    rewound = lab.facts.rewound
    early = None if rewound is None else weights_digest(rewound)
    return TrialRecipe(
        {method.name: method for method in settings.method.choices()},
        settings.model.without("weights", "pretrained").to_json(),
        Lineage(lab.facts.dense_digest, early, recipe_of(settings)),
        # without finetuning there is nothing to inherit, and errors of compensation would add up
        settings.search.lineage and not settings.phases.untrained,
        settings.study.trial_timeout,
    )


@dataclass(frozen=True)
class Evaluator:
    """Evaluates plans in a laboratory; what it keeps is in the store.

    `pace` gives the optimizer steps of a round. `mixed` is the number of mixed copies of the
    training data; None: as configured. `may_save` raises where another process has taken over the
    trial. `allocations` searches how the units of a plan are shared out.
    """

    lab: Lab
    recipe: TrialRecipe
    store: PlanStore
    pace: RoundSteps = lambda ratio, rounds: None
    mixed: int | None = None
    may_save: Callable[[int], None] = lambda number: None
    allocations: AllocationSearch | None = None
    _latencies: dict[Any, dict[str, float]] = field(default_factory=dict, repr=False)

    def __call__(self, plan: Plan, number: int, report: Report) -> Measurement:
        """Prune and finetune; see `Evaluate`.

        Errors: PlanError for a plan that removes nothing: it is rejected, not a failure.
        TrialTimeoutError, and whatever the model, the task and the data raise.
        """
        lab = self.lab
        if self.recipe.timeout is not None:
            lab = replace(lab, check=Deadline(self.recipe.timeout, time.monotonic()))
        evaluator = replace(self, lab=lab)

        def attempt(smaller: Plan) -> Measurement:
            return evaluator._evaluated(smaller, number, report)

        return sparing_memory(attempt, plan, lab.on_out_of_memory)

    def _evaluated(self, plan: Plan, number: int, report: Report) -> Measurement:
        self._require_something_removed(plan)
        parent = self.store.parent_of(plan, number) if self.recipe.lineage else None
        plan = replace(
            plan,
            parent=None if parent is None else parent.number,
            seed=seed_of(self.lab.seed, Stream.TRIAL, number),
        )
        costs = self._costs_before(plan)
        broken = self._broken(costs)
        if broken:
            rejected = measurement(self.lab, plan, self._kept(plan), plan.density)
            rejected = replace(rejected, state="rejected", reason=broken)
            return with_costs(rejected, costs, self.lab.facts.dense_costs)
        working = self.inherited(parent)
        plan = self._allocated(plan, working)
        plan = self._paced(plan, working)
        outcome = run_plan(self.lab, self.recipe.methods[plan.method], plan, working, report)
        if outcome.reason:
            stopped = measurement(self.lab, plan, self._kept(plan), plan.density)
            return replace(stopped, state="stopped", **outcome.record())
        return self._finish(number, plan, parent, outcome, costs)

    def _require_something_removed(self, plan: Plan) -> None:
        whole = (self._kept(plan) == self.lab.facts.structure.sizes).all()
        if whole and not plan.density and plan.activation is None:
            raise PlanError("a plan must remove something; this one keeps all: raise a threshold")

    def _kept(self, plan: Plan) -> Any:
        return plan.counts(self.lab.facts.structure)

    def _broken(self, costs: Mapping[str, float]) -> str:
        """Which bounds a plan of these costs breaks; "" where it keeps all."""
        facts = self.lab.facts
        ratios = ratios_of(costs, facts.dense_costs)
        return facts.goals.broken(with_ratios(costs, ratios))

    def _costs_before(self, plan: Plan) -> dict[str, float]:
        """As `costs_before`; a latency is measured once for the same counts.

        Otherwise the same counts could both keep and break a bound.
        """
        if not self.lab.facts.goals.bounded("latency_ms"):
            return costs_before(self.lab, plan)
        key = (
            tuple(sorted(plan.kept.items())),
            tuple(sorted(plan.density.items())),
            plan.activation,
            plan.export,
        )
        if key not in self._latencies:
            self._latencies[key] = costs_before(self.lab, plan)
        return self._latencies[key]

    def _allocated(self, plan: Plan, working: Working) -> Plan:
        """The plan with a searched allocation, where there is to be one."""
        if self.allocations is None:
            return plan
        return self.allocations(self.lab, self.recipe.methods[plan.method], plan, working)

    def _paced(self, plan: Plan, working: Working) -> Plan:
        """The plan with what a budget in time sets: the steps of a round, and mixed copies."""
        rounds = planned_rounds(self.lab, self.recipe.methods[plan.method], plan, working.alive)
        ratio = self.lab.facts.ratios(self._kept(plan))["flops"]
        timing = replace(plan.timing, round_steps=self.pace(ratio, rounds), mixed=self.mixed)
        return replace(plan, timing=timing)

    def inherited(self, parent: Finished | None) -> Working:
        """What a trial begins from: a finished plan or the dense model.

        Errors: DataError for damaged weights.
        """
        if parent is None:
            return Working(self.lab.facts.model, self.lab.facts.structure.full())
        return begun(self.lab, self.store.weights(parent), parent.keep, parent.sparse)

    def _finish(
        self,
        number: int,
        plan: Plan,
        parent: Finished | None,
        outcome: Outcome,
        before: Mapping[str, float],
    ) -> Measurement:
        """Save the model, and measure its costs after rounding, guards and regrowth."""
        lab = self.lab
        working = outcome.working
        model = working.model.eval()
        kept = lab.facts.structure.counts(working.alive)
        density = lab.density(model, list(working.masks), plan.activation)
        measured = measurement(lab, plan, kept, density, model)
        measured = replace(measured, **outcome.record())
        if "latency_ms" in before and (kept == self._kept(plan)).all():
            # one measurement decides: no plan may keep its bound before training and break it after
            latency = {"latency_ms": before["latency_ms"]}
            measured = with_costs(measured, latency, lab.facts.dense_costs)
        measured = as_exported(lab, measured, model, self.store.of(number), plan)
        # checked before it is saved: nobody may inherit from metrics that are not finite
        _require_finite(measured.metrics)
        document = self._document(number, plan, parent, outcome, measured)
        self.may_save(number)
        self.store.save(number, document, model)
        return measured

    def _document(
        self,
        number: int,
        plan: Plan,
        parent: Finished | None,
        outcome: Outcome,
        measured: Measurement,
    ) -> dict[str, Any]:
        """The content of `plan.json` for a finished trial."""
        facts = self.lab.facts
        working = outcome.working
        structure = facts.structure
        kept = structure.counts(working.alive)
        density = densities(working.model, working.masks)
        activation = self.lab.activation(plan.activation)
        return {
            "format": FORMAT,
            "trial": number,
            "model": self.recipe.architecture,
            "network": facts.model.path if isinstance(facts.model, Whole) else None,
            "inputs": facts.example.to_json(),
            "macs": facts.cost.macs(kept),
            "effective_macs": effective_macs(structure, working.alive, measured.density),
            "params": facts.cost.params(kept),
            "validation": dict(measured.metrics),
            "ancestors": [] if parent is None else [*parent.ancestors, parent.number],
            "trained_rounds": outcome.rounds,
            "lineage": self._lineage(number, plan, parent, outcome).to_json(),
            "plan": plan.to_json(),
            "keep": keep_to_json(structure, working.alive),
            "density": density,
            "shares": _shares(density, plan.density),
            "attention": structure.attention,
            "activation": None if activation is None else asdict(activation),
            "dropped": list(dropped(structure, working.alive)),
        }

    def _lineage(
        self, number: int, plan: Plan, parent: Finished | None, outcome: Outcome
    ) -> Lineage:
        """The parent's lineage with this trial as its last link."""
        before = self.recipe.dense if parent is None else self.store.lineage(parent)
        method = self._methods[plan.method]
        working = outcome.working
        structure = self.lab.facts.structure
        link = Link(
            number,
            method_key(method),
            plan.to_json(),
            by_group(structure, structure.counts(working.alive)),
            outcome.rounds,
            weights_digest(working.model),
            made_with(self.lab.device, self.lab.memory_format),
        )
        return before.extended(link, method)

    @cached_property
    def _methods(self) -> dict[str, dict[str, Any]]:
        """The methods as plain data, by name."""
        return {name: method.plain() for name, method in self.recipe.methods.items()}


def _shares(density: Mapping[str, float], asked: Mapping[str, float]) -> dict[str, float]:
    """Share of its units that each tensor keeps.

    Of blocks that differ in size a share of units is not the share of weights; then the share that
    the plan asked for counts.
    """
    return {name: max(share, asked.get(name, 0.0)) for name, share in density.items()}


def _require_finite(metrics: Mapping[str, float]) -> None:
    wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if wrong:
        raise ValueError(f"metrics must be finite; got {wrong}")
