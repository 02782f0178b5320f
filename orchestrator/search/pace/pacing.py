"""A study under a budget in time: the machine's speed, the pace of its trials, and what is left for confirming."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.structure import Counts
from orchestrator.progress import Progress
from orchestrator.search.confirmation.ladders import Rung, steps_by_rung
from orchestrator.search.lab.problem import Problem, Training
from orchestrator.search.pace.budget import (
    FEWEST,
    STEPWISE,
    Pace,
    Sharing,
    Speed,
    Unpaced,
    fewer_rungs,
)
from orchestrator.search.space import Params, Space, Terrain
from orchestrator.search.space.allocation import cut_anyhow
from orchestrator.search.studies.queue import own_trials, queued
from orchestrator.search.studies.trial import MEASURED, SECONDS, Study
from orchestrator.search.trials.evaluate import Evaluator
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.settings.budget import Budget

CONFIRMING = 0.2
"""The part of a budget in time that is kept for confirming the front."""
STEPS = 3
"""Optimizer steps that are timed at each of the ratios."""
USUAL_ROUNDS = 2
"""Units of finetuning of a trial: each begins and ends with work that is no optimizer step."""
TARGETS = "targets"
MIXED = "mixed"
MIXING, MOST_MIXED, MIXED_EPOCHS = 0.05, 8, 10.0
"""The part of a budget in time that mixed copies of the training data may take, how many there are at most, and the
epochs that the chain's rungs have on average at least: models that have not learnt the data do not need more of it."""


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
        return (
            f"{self.budget.text}, a chain of {len(self.targets)} rungs first"
            if self.targets
            else self.budget.text
        )

    @property
    def rung_steps(self) -> list[float]:
        """Steps of the chain's rungs, large to small, as long as all goes as expected."""
        if isinstance(self.pace, Unpaced):
            return []
        return [
            float(self.pace.rung_steps(ratio)) for ratio in self.pace.chain[: len(self.targets)]
        ]

    def seconds_left(self) -> float | None:
        """Of the whole run; None where the budget is not in seconds."""
        return (
            max(0.0, self.budget.amount - self.clock())
            if self.budget.measure == "seconds"
            else None
        )

    def confirming(self, problem: Problem, flops_ratios: Sequence[float]) -> int | None:
        """Steps of a round with which models of these FLOPs, and the dense one, are confirmed in the time that is left.

        None where the budget is not in seconds: confirmed as configured.
        """
        if (left := self.seconds_left()) is None:
            return None
        how, usual = problem.settings.phases.confirm, problem.settings.phases.finetune.round_steps
        models = [1.0, *flops_ratios]
        beside, step = sum(map(self.speed.beside_at, models)), sum(map(self.speed.step_at, models))
        steps = (left / (self.pace.slower * len(how.seeds)) - beside) / (how.rounds * step)
        return int(np.clip(steps, FEWEST, max(FEWEST, 10 * usual)))

    def affords(
        self,
        problem: Problem,
        rungs: Sequence[Rung],
        confirmed: Sequence[Rung],
        round_steps: int | None,
    ) -> bool:
        """Whether a ladder with these rungs, some of them `confirmed` as in `confirming`, would end in time."""
        if (left := self.seconds_left()) is None:
            return True
        how, usual, seconds = (
            problem.settings.phases.confirm,
            problem.settings.phases.finetune.round_steps,
            0.0,
        )
        for rung, steps in steps_by_rung(rungs, usual):
            seconds += self.speed.price(self._ratio(problem, rung), steps)
        for rung in confirmed:
            seconds += len(how.seeds) * self.speed.price(
                self._ratio(problem, rung), how.rounds * (round_steps or usual)
            )
        return self.pace.slower * seconds <= left

    def _ratio(self, problem: Problem, rung: Rung) -> float:
        """Of a ladder's FLOPs: where single weights are pruned they stay the dense ones."""
        return rung.macs / problem.dense_macs if len(self.speed.ratios) > 1 else 1.0


@dataclass(frozen=True)
class Plans:
    """The FLOPs ratio that a trial's parameters come to: what its steps cost."""

    evaluator: Evaluator
    space: Space
    terrain: Terrain

    @property
    def cut(self) -> bool:
        """Whether plans remove anything; weights at zero cost as much as others."""
        methods = self.evaluator.methods.values()
        return any(
            isinstance(stage.pruner, UnitPruner) for method in methods for stage in method.stages
        )

    def flops_ratio(self, params: Params) -> float:
        if not self.cut or not params:  # a user's own plan may keep most of the model
            return 1.0
        try:
            kept = self._kept(params)
        except PlanError:  # the trial will say so
            return 1.0
        return self.evaluator.problem.ratios(kept)["flops"]

    def at(self, target: float) -> float:
        return self.flops_ratio(self.space.chain(self.terrain, target)) if self.cut else 1.0

    def kept(self, target: float) -> Counts:
        """Of the chain's rung there; the dense counts where that is no plan."""
        try:
            return self._kept(self.space.chain(self.terrain, target))
        except PlanError:
            return self.terrain.structure.sizes

    def _kept(self, params: Params) -> Counts:
        return self.evaluator.wanted(self.space.propose(self.terrain, params)).kept


def pacing_of(
    plans: Plans,
    study: Study,
    begin: float,
    progress: Progress,
    now: Callable[[], float] = time.perf_counter,
    confirming: float = CONFIRMING,
) -> Pacing | None:
    """None where the study has no budget in time or epochs; `begin` is when this run began by the clock `now`.

    Errors: ConfigError where what came before the first trial has used the budget up.
    """
    problem = plans.evaluator.problem
    budget, chain = problem.settings.study.budget, problem.settings.search.chain
    if budget is None:
        return None
    per_epoch = len(problem.data.train_batches(0))
    if budget.measure == "epochs":
        speed, available = STEPWISE, budget.amount * per_epoch

        def clock() -> float:
            return _charged(problem, study)
    else:
        trials = own_trials(study)
        earlier = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in trials)
        before = now() - begin
        if not any(trial.state.is_finished() for trial in trials):
            _require_time(budget, before)
        available = before + (1.0 - confirming) * (budget.amount - before)

        def clock() -> float:
            return float(earlier + now() - begin)

        progress.phase("speed", "of optimizer steps at up to three FLOPs ratios")
        with problem.timed("profile"):
            speed = _speed(problem, plans, now)
    if chain.targets == 0:
        return Pacing(budget, (), Unpaced(available, clock), speed, clock)
    sharing = Sharing(max(1, round(chain.most_epochs * per_epoch)))
    if TARGETS not in study.user_attrs:
        rungs = fewer_rungs(
            lambda count: [plans.at(target) for target in _targets(problem, count)],
            chain.targets,
            speed,
            available - clock(),
            sharing,
        )
        study.set_user_attr(TARGETS, _targets(problem, rungs))
    targets = tuple(study.user_attrs[TARGETS])

    def left() -> list[float]:
        return [plans.flops_ratio(params) for params in queued(study)]

    priced = [plans.at(target) for target in targets]
    pace = Pace(speed, priced, available, sharing, clock, left, lambda: _steps_done(problem, study))
    return Pacing(budget, targets, pace, speed, clock)


def mixed_copies(problem: Problem, study: Study, pacing: Pacing | None) -> int | None:
    """As many as a budget in time pays for where they are to follow from it, the same whenever the study goes on.

    None: as configured. The dense outputs on them are there afterwards.
    """
    how, mixing = problem.settings.phases.finetune.distillation, problem.mixing
    if (
        how is None
        or how.mixed != "auto"
        or mixing is None
        or pacing is None
        or pacing.budget.measure != "seconds"
    ):
        return None
    if MIXED not in study.user_attrs:
        epochs = sum(pacing.rung_steps) / (
            max(1, len(pacing.rung_steps)) * len(problem.data.train_batches(0))
        )
        copies = (
            min(MOST_MIXED, mixing.affordable(MIXING * pacing.budget.amount))
            if epochs >= MIXED_EPOCHS
            else 0
        )
        study.set_user_attr(MIXED, copies)
    copies = int(study.user_attrs[MIXED])
    with problem.timed("evaluation"):
        mixing.prepare(copies)
    return copies


def _targets(problem: Problem, rungs: int) -> list[float]:
    chain = problem.settings.search.chain.model_copy(update={"targets": rungs})
    return chain.ratios(problem.settings.objectives.largest_ratio)


def _steps_done(problem: Problem, study: Study) -> float:
    """Optimizer steps of all trials so far."""
    return float(
        sum(_steps(problem, trial.user_attrs.get(MEASURED)) for trial in own_trials(study))
    )


def _charged(problem: Problem, study: Study) -> float:
    """Those, and something for trials without any: `FEWEST` for a failed one, one for a rejected one.

    Otherwise a space in which every plan fails would never end.
    """
    ended = [trial for trial in own_trials(study) if trial.state.is_finished()]
    found = [trial.user_attrs.get(MEASURED) for trial in ended]
    return float(
        sum(FEWEST if measured is None else max(1, _steps(problem, measured)) for measured in found)
    )


def _steps(problem: Problem, measured: Mapping[str, Any] | None) -> int:
    if measured is None:
        return 0
    usual = problem.settings.phases.finetune.round_steps
    return int(measured["trained_rounds"] * (measured["plan"]["timing"]["round_steps"] or usual))


def _require_time(budget: Budget, before: float) -> None:
    if before > 0.9 * budget.amount:
        raise ConfigError(
            f"study.budget={budget.text} must leave time for the search; the dense model and what else comes before it "
            f"took {before:.0f} s. They are kept: give the same command again, or a larger budget"
        )


def _speed(problem: Problem, plans: Plans, now: Callable[[], float]) -> Speed:
    """Of the dense model, the chain's middle and its end."""
    targets = _targets(problem, max(1, problem.settings.search.chain.targets))
    cuts = [plans.kept(targets[at]) for at in (len(targets) // 2, -1)] if plans.cut else []
    return measure(problem, cuts, now)


def measure(problem: Problem, cuts: Sequence[Counts], now: Callable[[], float]) -> Speed:
    """Time steps, recalibration and validation of the dense model and of what is left with these units kept."""
    models: dict[float, nn.Module] = {1.0: copy.deepcopy(problem.model)}
    for kept in cuts:
        models[problem.ratios(kept)["flops"]] = cut_anyhow(problem.model, problem.structure, kept)
    found = {ratio: _timed(problem, model, now) for ratio, model in models.items()}
    falling = tuple(sorted(found, reverse=True))
    return Speed(
        falling,
        tuple(found[ratio][0] for ratio in falling),
        tuple(found[ratio][1] for ratio in falling),
    )


def _timed(problem: Problem, model: nn.Module, now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step, and of a trial beside its steps; the first run of one step warms up."""
    finetune, moments = problem.settings.phases.finetune, [0.0]
    for steps in (1, 1, 1 + STEPS):
        begin = now()
        problem.finetune(model, Training(1, 0, round_steps=steps))
        moments.append(now() - begin)
    one, several = moments[-2:]
    step = max((several - one) / STEPS, 0.25 * several / (1 + STEPS))
    begin = now()
    problem.recalibrate(model, finetune.recalibration_batches, 0)
    problem.validate(model)
    return step, now() - begin + USUAL_ROUNDS * max(0.0, one - step)
