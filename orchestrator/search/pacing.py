"""A study under a budget in time: the machine's speed, the pace of its trials, and what is left for confirming."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_modules.errors import ConfigError
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.removal import remove
from orchestrator.progress import Progress
from orchestrator.search.allocation import scaled
from orchestrator.search.budget import FEWEST, STEPWISE, Pace, Speed, Unpaced, fewer_rungs
from orchestrator.search.ladders import Rung
from orchestrator.search.problem import Problem
from orchestrator.search.study import KIND, MEASURED, SECONDS, Study
from orchestrator.settings.budget import Budget

CONFIRMING = 0.2
"""The part of a budget in time that is kept for confirming the front."""
STEPS = 3
"""Optimizer steps that are timed at each of the ratios, after one to warm up."""
TARGETS = "targets"


@dataclass(frozen=True)
class Pacing:
    """`targets` of the chain, the `pace` of trials, and the clock of the whole budget, in its unit."""

    budget: Budget
    targets: tuple[float, ...]
    pace: Pace | Unpaced
    speed: Speed
    clock: Callable[[], float]

    @property
    def words(self) -> str:
        return f"{self.budget.text}, a chain of {len(self.targets)} rungs first"

    def seconds_left(self) -> float | None:
        """Of the whole run; None where the budget is not in seconds."""
        return max(0.0, self.budget.amount - self.clock()) if self.budget.unit == "seconds" else None

    def confirming(self, problem: Problem) -> Problem:
        """The problem with units as long as the rest of the time allows for every model and seed of the confirmation.

        A budget in epochs leaves the confirmation as it is configured.
        """
        if (left := self.seconds_left()) is None:
            return problem
        how, finetune = problem.settings.phases.confirm, problem.settings.phases.finetune
        runs = (min(how.max_models, len(self.targets)) + 1) * len(how.seeds)  # the dense model is one of them
        step, beside = self._mean(self.speed.step_at), self._mean(self.speed.beside_at)
        steps = (left / (self.pace.slower * runs) - beside) / (step * how.units)
        finetune = finetune.model_copy(update={"unit_steps": int(np.clip(steps, FEWEST, 10 * finetune.unit_steps))})
        phases = problem.settings.phases.model_copy(update={"finetune": finetune})
        return replace(problem, settings=problem.settings.model_copy(update={"phases": phases}))

    def affords(self, problem: Problem, rungs: Sequence[Rung]) -> bool:
        """Whether a ladder with these rungs, and its confirmation, would end in time."""
        if (left := self.seconds_left()) is None:
            return True
        how, unit_steps = problem.settings.phases.confirm, problem.settings.phases.finetune.unit_steps
        confirmed = min(how.max_baseline_models, len(rungs)) * len(how.seeds)
        steps = max((rung.steps for rung in rungs), default=0) + confirmed * how.units * unit_steps
        beside = (len(rungs) + confirmed) * self._mean(self.speed.beside_at)
        return self.pace.slower * (steps * self._mean(self.speed.step_at) + beside) <= left

    def _mean(self, price: Callable[[float], float]) -> float:
        return sum(map(price, self.targets)) / len(self.targets)


def pacing_of(
    problem: Problem,
    study: Study,
    begin: float,
    progress: Progress,
    now: Callable[[], float] = time.perf_counter,
    confirming: float = CONFIRMING,
) -> Pacing | None:
    """None where the study has no budget in time or epochs; `begin` is when this run began by the clock `now`.

    Errors: ConfigError where what came before has used the budget up.
    """
    budget, chain = problem.settings.study.paced, problem.settings.search.chain
    if budget is None:
        return None
    per_epoch = len(problem.data.train_batches(0))
    ladders = len(chain.equal_loss)
    if budget.unit == "epochs":
        speed, available = STEPWISE, budget.amount * per_epoch

        def clock() -> float:
            return _steps_done(problem, study)
    else:
        earlier = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in study.get_trials(deepcopy=False))
        available = (1.0 - confirming) * budget.amount

        def clock() -> float:
            return float(earlier + now() - begin)

        _require_time(budget, budget.amount - clock())
        progress.phase("speed", "of optimizer steps at three FLOPs ratios")
        with problem.timed("profile"):
            speed = measure(problem, _targets(problem, max(1, chain.rungs)), now)
    if chain.rungs == 0:
        return Pacing(budget, (chain.largest, chain.smallest), Unpaced(available, clock), speed, clock)
    if TARGETS not in study.user_attrs:
        found = fewer_rungs(lambda n: _targets(problem, n), chain.rungs, speed, (available - clock()) / ladders)
        study.set_user_attr(TARGETS, found)
    targets = study.user_attrs[TARGETS]
    most = max(1, round(chain.most_epochs * per_epoch))
    pace = Pace(speed, targets, available, most, clock, ladders, _chained(study, len(targets) * ladders), chain.even)
    return Pacing(budget, tuple(targets), pace, speed, clock)


def _targets(problem: Problem, rungs: int) -> list[float]:
    chain = problem.settings.search.chain.model_copy(update={"rungs": rungs})
    return chain.targets(problem.settings.objectives.max_flops_ratio)


def _chained(study: Study, rungs: int) -> bool:
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return len([trial for trial in ended if trial.user_attrs.get(KIND, "").startswith("chain")]) >= rungs


def _steps_done(problem: Problem, study: Study) -> float:
    """Optimizer steps of all trials so far."""
    usual, total = problem.settings.phases.finetune.unit_steps, 0
    for trial in study.get_trials(deepcopy=False):
        if measured := trial.user_attrs.get(MEASURED):
            total += measured["trained_units"] * (measured["plan"]["timing"]["unit_steps"] or usual)
    return float(total)


def _require_time(budget: Budget, left: float) -> None:
    if left < 0.1 * budget.amount:
        raise ConfigError(
            f"study.budget={budget.text} must leave time for the search; what came before it took all but "
            f"{max(0.0, left):.0f} s and is kept: give the same command again, or a larger budget"
        )


def measure(problem: Problem, targets: Sequence[float], now: Callable[[], float]) -> Speed:
    """Time steps, recalibration and validation of models cut evenly to the largest, middle and smallest target."""
    ratios = sorted({targets[0], targets[len(targets) // 2], targets[-1]}, reverse=True)
    structure, units = problem.structure, problem.settings.phases.finetune.units
    step, beside = [], []
    for ratio in ratios:
        shares = np.ones(len(structure.groups))
        kept = scaled(structure.sizes, problem.cost.macs, int(ratio * problem.dense_macs), shares)
        keep = thresholds.choose(structure, np.zeros(structure.n_units), structure.full(), kept)
        model = remove(problem.model, structure, keep)
        problem.finetune(model, 1, 0, unit_steps=1)
        begin = now()
        problem.finetune(model, 1, 0, unit_steps=STEPS)
        middle = now()
        problem.recalibrate(model, problem.settings.phases.finetune.recalibration_batches, 0)
        problem.validate(model)
        step.append((middle - begin) / STEPS)
        beside.append((now() - middle) * units)
    return Speed(tuple(ratios), tuple(step), tuple(beside))
