"""Carry out one plan: pruning steps and finetuning in turn, under the guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytorch_lightning import Callback

from lightning_modules.phases.carried import Carried
from lightning_modules.phases.penalised import Penalised
from lightning_modules.phases.sparse import Sparse
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Keep, Structure
from orchestrator.search.lab.lab import Lab, Training
from orchestrator.search.plans.measurement import Report, RoundResult
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner
from orchestrator.search.trials.working import Event, Stage, UnitStage, WeightStage, Working, events
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import GuardSettings, MethodSettings


@dataclass(frozen=True)
class Outcome:
    """What came of a plan; with a `reason` it was stopped.

    `rungs` are those after the last pruning step. `spent` are the rounds of finetuning that were
    paid for, `rounds` those that are in the weights: a guard that goes back to earlier weights
    leaves some behind.
    """

    working: Working
    rungs: tuple[RoundResult, ...]
    spent: int
    rounds: int
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """As a measurement has it."""
        return {"rungs": self.rungs, "reason": self.reason, "trained_rounds": self.spent}


@dataclass
class _Good:
    """The last state within the guard's tolerance, and what it measured.

    `rounds` are the rounds of finetuning in its weights.
    """

    working: Working
    rungs: tuple[RoundResult, ...]
    rounds: int


class _Run:
    """One plan at work; see `run_plan`."""

    def __init__(
        self, lab: Lab, plan: Plan, working: Working, ratio: float, report: Report
    ) -> None:
        self.lab = lab
        self.plan = plan
        self.working = working
        self.ratio = ratio
        self.report = report
        self.finetuning = lab.phases.finetune
        self.spent = 0
        self.rounds = 0
        self.turn = 0
        self.reason = ""
        self.rungs: list[RoundResult] = []
        self.good: _Good | None = None

    def sparsify(self, stage: UnitStage) -> None:
        """Training under a penalty before the first pruning step."""
        sparsify = self.lab.phases.sparsify
        if sparsify is None:
            return
        penalty = sparsify.penalty.build()
        structure = self.lab.facts.structure.restrict(self.working.alive)
        keep = stage.staying(self.working, self.plan.seed)
        callback = Penalised(lambda model, progress: penalty(model, structure, keep, progress))
        self.train(sparsify.rounds, [callback], last=False)

    def stage(self, stage: Stage, last: bool) -> bool:
        """All pruning steps of one stage with their finetuning.

        False where the guard or the search ended the trial.
        """
        lead, waiting = events(self.plan.timing, stage.soft)
        if lead:
            self.train(lead, stage.callbacks(self.working, None, self._seed()), last=False)
        guard = self.finetuning.guard
        reached = 0.0
        retries = guard.retries if guard else 0
        while waiting:
            event = waiting.pop(0)
            before = _Good(self.working.copy(), (), self.rounds) if guard else None
            self._step(stage, event, last and not waiting)
            if self.reason:
                return False
            if guard is None or before is None or not event.rounds:
                continue
            if self._within(guard):
                reached = event.fraction
                self.good = _Good(self.working.copy(), tuple(self.rungs), self.rounds)
            elif guard.action == "slow_down" and retries > 0:
                retries -= 1
                self.working = before.working
                self.rounds = before.rounds
                halfway = replace(event, fraction=0.5 * (reached + event.fraction))
                waiting = [halfway, event, *waiting]
            else:
                self._end(guard)
                return False
        return True

    def _step(self, stage: Stage, event: Event, last: bool) -> None:
        """One pruning step, and the finetuning after it."""
        stage.prune(self.working, event, self._seed())
        self._begin_weights(event)
        batches = self.finetuning.recalibration_batches
        with stage.shown(self.working):
            self.lab.recalibrate(self.working.model, batches, self._seed())
        if event.rounds:
            callbacks = stage.callbacks(self.working, event, self._seed())
            self.train(event.rounds, callbacks, last)

    def _end(self, guard: GuardSettings) -> None:
        """End the trial with its last good state.

        It ends as stopped where there is no such state, or it is not wanted.
        """
        if guard.action == "stop" or self.good is None:
            quality = self.lab.facts.goals.quality
            value = self.rungs[-1][1][quality]
            self.reason = (
                f"guard: {quality} {value:.4f} is more than {guard.tolerance:g} from the "
                "dense model's"
            )
        else:
            self.working = self.good.working
            self.rungs = list(self.good.rungs)
            self.rounds = self.good.rounds

    def _within(self, guard: GuardSettings) -> bool:
        facts = self.lab.facts
        reached = self.rungs[-1][1][facts.goals.quality]
        drop = facts.goals.sign * (facts.dense_quality - reached)
        return drop <= guard.tolerance * facts.scale

    def train(self, rounds: int, callbacks: list[Callback], last: bool) -> None:
        """Train for `rounds` rounds and keep their rungs.

        After the last pruning step the rungs are reported to the search.
        """
        self.rungs = []

        def on_round(number: int, metrics: Mapping[str, float]) -> bool:
            self.rungs.append((number, dict(metrics)))
            if last:
                self.reason = self.report(number, self.ratio, metrics) or ""
                if number == rounds:
                    self.reason = ""
            return not self.reason

        carried = Carried(self.working.optimizer)
        timing = self.plan.timing
        training = Training(
            rounds,
            self._seed(),
            round_steps=timing.round_steps,
            level=self.plan.activation,
            distillation=timing.distillation,
            accumulate=timing.accumulate,
            mixed=timing.mixed,
            callbacks=self._with_usual(callbacks, carried),
        )
        done = self.lab.finetune(self.working.model, training, on_round)
        self.working.optimizer = carried.state
        self.spent += done
        self.rounds += done
        self.turn += 1

    def _with_usual(self, callbacks: list[Callback], carried: Carried) -> list[Callback]:
        """These callbacks, the one that carries the optimizer, and one that keeps masks."""
        complete = [*callbacks, carried]
        sparse = [callback for callback in callbacks if isinstance(callback, Sparse)]
        if self.working.masks and not sparse:
            complete.append(Sparse(self.working.masks))
        return complete

    def _begin_weights(self, event: Event) -> None:
        """Weight rewinding, or fresh weights, for the units that are left."""
        begin = self.finetuning.begin
        if begin == "kept" or not event.hard:
            return
        facts = self.lab.facts
        if begin == "rewound":
            assert facts.rewound is not None
            dense = facts.rewound
        else:
            seed = seed_of(self.plan.seed, Stream.FRESH_WEIGHTS)
            dense = self.lab.fresh(seed).to(self.lab.device)
        self.working.restart(dense, self.working.alive, facts.structure)

    def _seed(self) -> int:
        return seed_of(self.plan.seed, self.turn + 1)


def planned_rounds(lab: Lab, method: MethodSettings, plan: Plan, alive: Keep) -> int:
    """Rounds of finetuning of the whole plan from `alive` units on, where no guard changes them."""
    sparsify = lab.phases.sparsify
    rounds = 0
    for stage in _stages_at_work(lab.facts.structure, method, plan, alive):
        rounds += max(plan.timing.total, 2 if stage.soft else 1)
        if stage.removes_units and sparsify is not None:
            rounds += sparsify.rounds
    return rounds or plan.timing.total


def run_plan(
    lab: Lab, method: MethodSettings, plan: Plan, working: Working, report: Report
) -> Outcome:
    """Carry the plan out on `working`: its stages in turn, with finetuning as its timing says.

    The plan, its method and the weights that it begins from decide the result; the dense model is
    not scored.
    """
    facts = lab.facts
    ratio = facts.ratios(plan.counts(facts.structure), plan.density)[facts.axis]
    # a copy: the dense model is shared by all trials
    run = _Run(lab, plan, working.copy(), ratio, report)
    stages = _stages_at_work(facts.structure, method, plan, working.alive)
    if not stages:
        # only activations are pruned: the weights get used to it
        run.train(plan.timing.total, [], last=True)
    for index, settings in enumerate(stages):
        stage = _stage(lab, settings, run)
        if isinstance(stage, UnitStage):
            run.sparsify(stage)
        if not run.stage(stage, last=index == len(stages) - 1):
            break
    return Outcome(run.working, tuple(run.rungs), run.spent, run.rounds, run.reason)


def _stages_at_work(
    structure: Structure, method: MethodSettings, plan: Plan, alive: Keep
) -> list[MethodSettings]:
    """The method's stages that have something to remove from these units."""
    fewer_units = bool((plan.counts(structure) < structure.counts(alive)).any())
    fewer_weights = bool(plan.density)
    stages = []
    for stage in method.stages():
        at_work = fewer_units if stage.removes_units else fewer_weights
        if at_work:
            stages.append(stage)
    return stages


def _stage(lab: Lab, settings: MethodSettings, run: _Run) -> Stage:
    """A stage on the model as it is now, after the stages before it."""
    if settings.removes_units:
        kept = run.plan.counts(lab.facts.structure)
        return UnitStage(UnitPruner(lab, settings), run.working, kept)
    pruner = WeightPruner(lab, settings, run.working.model, run.working.alive)
    return WeightStage(pruner, run.working, pruner.shares(run.plan.density))
