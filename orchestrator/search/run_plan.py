"""Carry out one plan: pruning steps and finetuning in turn, under the guard, until the last unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pytorch_lightning import Callback

from lightning_modules.phases.carried import Carried
from lightning_modules.phases.penalised import Penalised
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Counts
from orchestrator.search.dense import fresh_model
from orchestrator.search.measurement import Report, Rung
from orchestrator.search.methods import Method
from orchestrator.search.problem import Problem, seed_of
from orchestrator.search.pruners import UnitPruner, WeightPruner
from orchestrator.search.working import Event, Stage, UnitStage, WeightStage, Working, events


@dataclass(frozen=True)
class Ended:
    """`units` of finetuning were spent; `rungs` are those after the last step; with a `reason` it was stopped."""

    working: Working
    rungs: tuple[Rung, ...]
    units: int
    reason: str = ""


@dataclass
class _Good:
    """The last state within the guard's tolerance, and what it measured."""

    working: Working
    fraction: float
    rungs: tuple[Rung, ...]


class _Run:
    """One plan at work; see `run_plan`."""

    def __init__(self, problem: Problem, plan: Plan, working: Working, ratio: float, report: Report) -> None:
        self.problem, self.plan, self.working, self.ratio, self.report = problem, plan, working, ratio, report
        self.how = problem.settings.phases.finetune
        self.spent, self.turn, self.reason = 0, 0, ""
        self.rungs: list[Rung] = []

    def sparsify(self, stage: UnitStage) -> None:
        """Training under a penalty before the first pruning step."""
        if (how := self.problem.settings.phases.sparsify) is None:
            return
        penalty, structure = how.penalty.build(), self.problem.structure.restrict(self.working.alive)
        keep = stage.doomed(self.working, self.plan.seed)
        callback = Penalised(lambda model, progress: penalty(model, structure, keep, progress))
        self.train(how.units, [callback], last=False)

    def stage(self, stage: Stage, last: bool) -> bool:
        """All pruning steps of one stage with their finetuning; False where the guard or the search ended the trial."""
        steps, total = events(self.plan.timing, stage.soft)
        if steps[0].moment:
            self.train(steps[0].moment, stage.callbacks(self.working, None, self._seed()), last=False)
        waiting, good = list(steps), None
        retries = self.how.guard.retries if self.how.guard else 0
        while waiting:
            event = waiting.pop(0)
            before = self.working.copy() if self.how.guard else None
            stage.prune(self.working, event, self._seed())
            self._begin_weights(event)
            self.problem.recalibrate(self.working.model, self.how.recalibration_batches, self._seed())
            after = (waiting[0].moment if waiting else total) - event.moment
            if after > 0:
                self.train(after, stage.callbacks(self.working, event, self._seed()), last and not waiting)
            if self.reason:
                return False
            if before is None or not self.rungs or self._within():
                good = _Good(self.working.copy(), event.fraction, tuple(self.rungs)) if before is not None else None
                continue
            if not self._guard(before, good, event, waiting, retries):
                return False
            retries -= 1
        return True

    def _guard(self, before: Working, good: _Good | None, event: Event, waiting: list[Event], retries: int) -> bool:
        """Whether to go on after a step that lost too much; otherwise the trial ends here."""
        guard = self.how.guard
        assert guard is not None
        quality = self.problem.settings.objectives.quality
        lost = (
            f"guard: {quality} {self.rungs[-1][1][quality]:.4f} is more than {guard.tolerance:g} from the dense model's"
        )
        if guard.action == "slow_down" and retries > 0:
            start = good.fraction if good else 0.0
            half = replace(event, fraction=0.5 * (start + event.fraction))
            waiting[:0] = [half, event] if event.fraction - start > 0.02 else []
            if waiting:
                self.working, self.rungs = before, []
                return True
        if guard.action == "stop" or good is None:
            self.reason = lost
        else:
            self.working, self.rungs = good.working, list(good.rungs)
        return False

    def _within(self) -> bool:
        guard, quality = self.how.guard, self.problem.settings.objectives.quality
        assert guard is not None
        drop = self.problem.sign * (self.problem.dense[quality] - self.rungs[-1][1][quality])
        return drop <= guard.tolerance

    def train(self, units: int, callbacks: list[Callback], last: bool) -> None:
        """`units` units; rungs are kept, and told to the search after the last pruning step."""
        self.rungs = []

        def on_unit(unit: int, metrics: Mapping[str, float]) -> bool:
            self.rungs.append((unit, dict(metrics)))
            if last:
                self.reason = self.report(unit, self.ratio, metrics) or ""
                if unit == units:
                    self.reason = ""
            return not self.reason

        carried = Carried(self.working.optimizer) if self.how.carry_optimizer else None
        found = [*callbacks, *([carried] if carried else [])]
        self.problem.finetune(self.working.model, units, self._seed(), on_unit, callbacks=found)
        self.working.optimizer = carried.state if carried else None
        self.spent += units
        self.turn += 1

    def _begin_weights(self, event: Event) -> None:
        """Weight rewinding, or fresh weights, for what is left."""
        if self.how.begin == "kept" or not event.hard:
            return
        if self.how.begin == "rewound":
            assert self.problem.rewound is not None
            dense = self.problem.rewound
        else:
            dense = fresh_model(self.problem.settings, seed_of(self.plan.seed, 9)).to(self.problem.device)
        self.working.restart(dense, self.working.alive, self.problem.structure)

    def _seed(self) -> int:
        return seed_of(self.plan.seed, self.turn + 1)


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
    run = _Run(problem, plan, working.copy(), ratio, report)  # a copy: the dense model is shared by all trials
    makers: list[Callable[[], Stage]] = []
    for stage in method.stages:
        if isinstance(stage.pruner, UnitPruner):
            if (kept < problem.structure.counts(working.alive)).any():
                makers.append(lambda pruner=stage.pruner: UnitStage(pruner, run.working, kept))  # type: ignore[misc]
        elif density:
            makers.append(lambda stage=stage: _weights(problem, stage.settings, run.working, density))  # type: ignore[misc]
    for place, make in enumerate(makers):
        made = make()
        if isinstance(made, UnitStage):
            run.sparsify(made)
        if not run.stage(made, last=place == len(makers) - 1):
            break
    return Ended(run.working, tuple(run.rungs), run.spent, run.reason)


def _weights(problem: Problem, settings: object, working: Working, density: Mapping[str, float]) -> WeightStage:
    pruner = WeightPruner(problem, settings, working.model, working.alive)  # type: ignore[arg-type]
    return WeightStage(pruner, working, pruner.shares(density))
