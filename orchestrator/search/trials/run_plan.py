"""Carry out one plan: pruning steps and finetuning in turn, under the guard, until the last round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pytorch_lightning import Callback

from lightning_modules.phases.carried import Carried
from lightning_modules.phases.penalised import Penalised
from lightning_modules.phases.sparse import Sparse
from lightning_modules.pruning.plan import Plan, Timing
from lightning_modules.pruning.structure import Counts
from orchestrator.search.lab.dense import fresh_model
from orchestrator.search.lab.problem import Problem, Training, seed_of
from orchestrator.search.plans.measurement import Report, Rung
from orchestrator.search.trials.methods import Method
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner
from orchestrator.search.trials.working import Event, Stage, UnitStage, WeightStage, Working, events
from orchestrator.settings import GuardSettings, MethodSettings


@dataclass(frozen=True)
class Ended:
    """What came of a plan; with a `reason` it was stopped. `rungs` are those after the last pruning step.

    `spent` are the rounds of finetuning that were paid for, `rounds` those that are in the weights: a guard that goes
    back to earlier weights leaves some behind.
    """

    working: Working
    rungs: tuple[Rung, ...]
    spent: int
    rounds: int
    reason: str = ""


@dataclass
class _Good:
    """The last state within the guard's tolerance, what it measured, and the rounds of finetuning in its weights."""

    working: Working
    rungs: tuple[Rung, ...]
    rounds: int


class _Run:
    """One plan at work; see `run_plan`."""

    def __init__(
        self, problem: Problem, plan: Plan, working: Working, ratio: float, report: Report
    ) -> None:
        self.problem, self.plan, self.working, self.ratio, self.report = (
            problem,
            plan,
            working,
            ratio,
            report,
        )
        self.how = problem.settings.phases.finetune
        self.spent, self.rounds, self.turn, self.reason = 0, 0, 0, ""
        self.rungs: list[Rung] = []
        self.good: _Good | None = None

    def sparsify(self, stage: UnitStage) -> None:
        """Training under a penalty before the first pruning step."""
        if (how := self.problem.settings.phases.sparsify) is None:
            return
        penalty, structure = (
            how.penalty.build(),
            self.problem.structure.restrict(self.working.alive),
        )
        keep = stage.staying(self.working, self.plan.seed)
        callback = Penalised(lambda model, progress: penalty(model, structure, keep, progress))
        self.train(how.rounds, [callback], last=False)

    def stage(self, stage: Stage, last: bool) -> bool:
        """All pruning steps of one stage with their finetuning; False where the guard or the search ended the trial."""
        lead, waiting = events(self.plan.timing, stage.soft)
        if lead:
            self.train(lead, stage.callbacks(self.working, None, self._seed()), last=False)
        guard, reached = self.how.guard, 0.0
        retries = guard.retries if guard else 0
        while waiting:
            event = waiting.pop(0)
            before = _Good(self.working.copy(), (), self.rounds) if guard else None
            stage.prune(self.working, event, self._seed())
            self._begin_weights(event)
            with stage.shown(self.working):
                self.problem.recalibrate(
                    self.working.model, self.how.recalibration_batches, self._seed()
                )
            if not event.rounds:
                continue
            self.train(
                event.rounds,
                stage.callbacks(self.working, event, self._seed()),
                last and not waiting,
            )
            if self.reason:
                return False
            if guard is None or before is None:
                continue
            if self._within(guard):
                reached, self.good = (
                    event.fraction,
                    _Good(self.working.copy(), tuple(self.rungs), self.rounds),
                )
            elif guard.action == "slow_down" and retries > 0:
                retries -= 1
                self.working, self.rounds = before.working, before.rounds
                waiting[:0] = [replace(event, fraction=0.5 * (reached + event.fraction)), event]
            else:
                self._end(guard)
                return False
        return True

    def _end(self, guard: GuardSettings) -> None:
        """The trial ends with its last good state, or as stopped where there is none or it is not wanted."""
        if guard.action == "stop" or self.good is None:
            quality = self.problem.settings.objectives.quality
            value = self.rungs[-1][1][quality]
            self.reason = f"guard: {quality} {value:.4f} is more than {guard.tolerance:g} from the dense model's"
        else:
            self.working, self.rungs, self.rounds = (
                self.good.working,
                list(self.good.rungs),
                self.good.rounds,
            )

    def _within(self, guard: GuardSettings) -> bool:
        quality = self.problem.settings.objectives.quality
        drop = self.problem.sign * (self.problem.dense[quality] - self.rungs[-1][1][quality])
        return drop <= guard.tolerance * self.problem.scale

    def train(self, rounds: int, callbacks: list[Callback], last: bool) -> None:
        """`rounds` rounds; rungs are kept, and told to the search after the last pruning step."""
        self.rungs = []

        def on_round(number: int, metrics: Mapping[str, float]) -> bool:
            self.rungs.append((number, dict(metrics)))
            if last:
                self.reason = self.report(number, self.ratio, metrics) or ""
                if number == rounds:
                    self.reason = ""
            return not self.reason

        carried = Carried(self.working.optimizer) if self.how.carry_optimizer else None
        found = [*callbacks, *([carried] if carried else [])]
        if self.working.masks and not any(isinstance(callback, Sparse) for callback in callbacks):
            found.append(Sparse(self.working.masks))
        timing = self.plan.timing
        training = Training(
            rounds,
            self._seed(),
            round_steps=timing.round_steps,
            level=self.plan.activation,
            distillation=timing.distillation,
            accumulate=timing.accumulate,
            mixed=timing.mixed,
            callbacks=found,
        )
        done = self.problem.finetune(self.working.model, training, on_round)
        self.working.optimizer = carried.state if carried else None
        self.spent += done
        self.rounds += done
        self.turn += 1

    def _begin_weights(self, event: Event) -> None:
        """Weight rewinding, or fresh weights, for what is left."""
        if self.how.begin == "kept" or not event.hard:
            return
        if self.how.begin == "rewound":
            assert self.problem.rewound is not None
            dense = self.problem.rewound
        else:
            dense = fresh_model(self.problem.settings, seed_of(self.plan.seed, 9)).to(
                self.problem.device
            )
        self.working.restart(dense, self.working.alive, self.problem.structure)

    def _seed(self) -> int:
        return seed_of(self.plan.seed, self.turn + 1)


def planned_rounds(
    problem: Problem,
    method: Method,
    timing: Timing,
    alive: Counts,
    kept: Counts,
    density: Mapping[str, float],
) -> int:
    """Rounds of finetuning in all stages of `run_plan` from `alive` units on, where no guard changes them."""
    sparsify, found = problem.settings.phases.sparsify, 0
    for stage in method.stages:
        removes = isinstance(stage.pruner, UnitPruner)
        if (kept < alive).any() if removes else density:
            found += max(timing.total, 2 if stage.settings.soft else 1)
            found += sparsify.rounds if removes and sparsify is not None else 0
    return found or timing.total


def run_plan(
    problem: Problem,
    method: Method,
    plan: Plan,
    working: Working,
    kept: Counts,
    density: Mapping[str, float],
    report: Report,
) -> Ended:
    """Prune `working` to `kept` units and `density` of the weights of each tensor, finetuning as the plan says."""
    ratio = problem.ratios(kept, density)[problem.axis]
    # a copy: the dense model is shared by all trials
    run = _Run(problem, plan, working.copy(), ratio, report)
    makers: list[Callable[[], Stage]] = []
    for stage in method.stages:
        if isinstance(stage.pruner, UnitPruner):
            if (kept < problem.structure.counts(working.alive)).any():
                pruner = replace(stage.pruner, problem=problem)  # of this trial: with its deadline
                makers.append(partial(_units, pruner, run, kept))
        elif density:
            makers.append(partial(_weights, problem, stage.settings, run, density))
    if not makers:  # activations alone: the weights get used to it
        run.train(plan.timing.total, [], last=True)
    for place, make in enumerate(makers):
        made = make()
        if isinstance(made, UnitStage):
            run.sparsify(made)
        if not run.stage(made, last=place == len(makers) - 1):
            break
    return Ended(run.working, tuple(run.rungs), run.spent, run.rounds, run.reason)


def _units(pruner: UnitPruner, run: _Run, kept: Counts) -> UnitStage:
    return UnitStage(pruner, run.working, kept)


def _weights(
    problem: Problem, settings: MethodSettings, run: _Run, density: Mapping[str, float]
) -> WeightStage:
    pruner = WeightPruner(problem, settings, run.working.model, run.working.alive)
    return WeightStage(pruner, run.working, pruner.shares(density))
