"""A study under a budget in time.

That is: the machine's speed, the pace of its trials, and the time left for confirming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.structure import Counts
from orchestrator.progress import Progress
from orchestrator.search.confirmation.ladders import LadderStep, with_training_steps
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.lab import Lab, Training
from orchestrator.search.pace.budget import (
    FEWEST,
    STEPWISE,
    Ledger,
    Pace,
    Sharing,
    Speed,
    Unpaced,
    fewer_targets,
)
from orchestrator.search.space import Params, SearchContext, Space
from orchestrator.search.space.allocation import cut_anyhow
from orchestrator.search.studies.queue import own_trials, queued
from orchestrator.search.studies.trial import MEASURED, SECONDS, Study
from orchestrator.settings import ChainSettings, PhaseSettings, Settings
from orchestrator.settings.budget import Budget

CONFIRMING = 0.2
"""Share of a budget in time that is kept for confirming the front."""
SPEED_STEPS = 3
"""Number of optimizer steps that are timed at each of the ratios."""
USUAL_ROUNDS = 2
"""Rounds of finetuning of a usual trial.

Each begins and ends with work that is no optimizer step.
"""
TARGETS = "targets"
"""Attribute of the study: the targets of its chain."""
MIXED = "mixed"
"""Attribute of the study: the number of mixed copies of its training data."""
MIXING = 0.05
"""Share of a budget in time for computing the dense outputs on mixed copies of the data."""
MOST_MIXED = 8
"""Largest number of mixed copies."""
MIXED_EPOCHS = 10.0
"""Epochs that the chain's plans have on average at least where mixed copies are used.

With fewer, the data itself is new enough.
"""


@dataclass(frozen=True)
class Pacing:
    """The `targets` of the chain, the `pace` of trials, and the clock of the whole budget.

    The clock is on the scale of the budget's measure.
    """

    budget: Budget
    targets: tuple[float, ...]
    pace: Pace | Unpaced
    speed: Speed
    clock: Callable[[], float]

    @property
    def words(self) -> str:
        if not self.targets:
            return self.budget.text
        return f"{self.budget.text}, a chain of {len(self.targets)} targets first"

    @property
    def target_steps(self) -> list[float]:
        """Steps of the chain's plans, large to small, as long as all goes as expected."""
        if isinstance(self.pace, Unpaced):
            return []
        ratios = self.pace.chain[: len(self.targets)]
        return [float(self.pace.target_steps(ratio)) for ratio in ratios]

    def seconds_left(self) -> float | None:
        """Seconds left for the whole run; None where the budget is not in seconds."""
        if self.budget.measure != "seconds":
            return None
        return max(0.0, self.budget.amount - self.clock())

    def confirming(self, phases: PhaseSettings, flops_ratios: Sequence[float]) -> int | None:
        """Steps of a round with which models of these FLOPs, and the dense one, are confirmed.

        They are confirmed within the time that is left. None where the budget is not in seconds:
        confirmed as configured.
        """
        left = self.seconds_left()
        if left is None:
            return None
        confirm = phases.confirm
        beside = 0.0
        step = 0.0
        for ratio in (1.0, *flops_ratios):
            beside += self.speed.beside_at(ratio)
            step += self.speed.step_at(ratio)
        seconds = left / (self.pace.slower * len(confirm.seeds))
        steps = (seconds - beside) / (confirm.rounds * step)
        most = max(FEWEST, 10 * phases.finetune.round_steps)
        return int(np.clip(steps, FEWEST, most))

    def affords(
        self,
        lab: Lab,
        steps: Sequence[LadderStep],
        confirmed: Sequence[LadderStep],
        round_steps: int | None,
    ) -> bool:
        """Whether a ladder with these steps would end in time.

        Some of the steps are `confirmed`, as in `confirming`.
        """
        left = self.seconds_left()
        if left is None:
            return True
        confirm = lab.phases.confirm
        usual = lab.phases.finetune.round_steps
        seconds = 0.0
        for step, training_steps in with_training_steps(steps, usual):
            seconds += self.speed.price(self._ratio(lab.facts, step), training_steps)
        confirming = confirm.rounds * (round_steps or usual)
        for step in confirmed:
            price = self.speed.price(self._ratio(lab.facts, step), confirming)
            seconds += len(confirm.seeds) * price
        return self.pace.slower * seconds <= left

    def _ratio(self, facts: Facts, step: LadderStep) -> float:
        """FLOPs ratio of a ladder's step; where single weights are pruned it stays 1."""
        if len(self.speed.ratios) > 1:
            return step.macs / facts.dense_macs
        return 1.0


@dataclass(frozen=True)
class Plans:
    """The FLOPs ratio of a trial's plan, which decides what its steps cost."""

    facts: Facts
    space: Space
    context: SearchContext

    @property
    def cut(self) -> bool:
        """Whether plans remove anything; weights at zero cost as much as others."""
        return self.context.weight is None

    def flops_ratio(self, params: Params) -> float:
        if not self.cut or not params:
            # a user's own plan, which has no parameters, may keep most of the model
            return 1.0
        try:
            kept = self._kept(params)
        except PlanError:
            # the trial itself reports the error
            return 1.0
        return self.facts.ratios(kept)["flops"]

    def at(self, target: float) -> float:
        """FLOPs ratio of the chain's plan for a target."""
        if not self.cut:
            return 1.0
        return self.flops_ratio(self.space.chain(self.context, target))

    def kept(self, target: float) -> Counts:
        """Units of the chain's plan for a target; the dense counts where that is no plan."""
        try:
            return self._kept(self.space.chain(self.context, target))
        except PlanError:
            return self.facts.structure.sizes

    def _kept(self, params: Params) -> Counts:
        return self.space.propose(self.context, params).counts(self.facts.structure)


@dataclass(frozen=True)
class Clock:
    """When this run began, by `now` in seconds.

    `confirming` is the share of a budget in time that is left for confirming.
    """

    begin: float
    now: Callable[[], float] = time.perf_counter
    confirming: float = CONFIRMING

    @property
    def elapsed(self) -> float:
        return self.now() - self.begin


def pacing_of(
    settings: Settings, lab: Lab, plans: Plans, study: Study, clock: Clock, progress: Progress
) -> Pacing | None:
    """The pacing of a study; None where it has no budget in time or epochs.

    Errors: ConfigError where the work before the first trial has used the budget up.
    """
    budget = settings.study.budget
    chain = settings.search.chain
    if budget is None:
        return None
    per_epoch = lab.steps_per_epoch()
    steps = StepsDone(study, lab.phases.finetune.round_steps)
    if budget.measure == "epochs":
        speed = STEPWISE
        available = budget.amount * per_epoch
        spent = steps.charged
    else:
        spent = _seconds_spent(study, clock)
        available = _seconds_available(budget, study, clock)
        progress.phase("speed", "of optimizer steps at up to three FLOPs ratios")
        with lab.timed("profile"):
            speed = _speed(lab, plans, chain, clock.now)
    if chain.targets == 0:
        return Pacing(budget, (), Unpaced(available, spent), speed, spent)
    sharing = Sharing(max(1, round(chain.most_epochs * per_epoch)))
    if TARGETS not in study.user_attrs:
        count = _affordable_targets(plans, chain, speed, available - spent(), sharing)
        study.set_user_attr(TARGETS, _targets(plans, chain, count))
    targets = tuple(study.user_attrs[TARGETS])

    def left() -> list[float]:
        return [plans.flops_ratio(params) for params in queued(study)]

    ratios = [plans.at(target) for target in targets]
    pace = Pace(speed, ratios, available, sharing, Ledger(spent, left, steps.done))
    return Pacing(budget, targets, pace, speed, spent)


def _affordable_targets(
    plans: Plans, chain: ChainSettings, speed: Speed, available: float, sharing: Sharing
) -> int:
    """How many targets the chain has where it may cost what is `available`."""

    def ratios(count: int) -> list[float]:
        return [plans.at(target) for target in _targets(plans, chain, count)]

    return fewer_targets(ratios, chain.targets, speed, available, sharing)


def _seconds_spent(study: Study, clock: Clock) -> Callable[[], float]:
    """Seconds of the trials of earlier runs, and of this run so far."""
    seconds = [trial.user_attrs.get(SECONDS, 0.0) for trial in own_trials(study)]
    earlier = sum(seconds)
    return lambda: float(earlier + clock.elapsed)


def _seconds_available(budget: Budget, study: Study, clock: Clock) -> float:
    """Seconds for the search and what came before it.

    Errors: ConfigError where the work before has used the budget up already.
    """
    before = clock.elapsed
    ended = [trial for trial in own_trials(study) if trial.state.is_finished()]
    if not ended:
        _require_time(budget, before)
    return before + (1.0 - clock.confirming) * (budget.amount - before)


def mixed_copies(lab: Lab, study: Study, pacing: Pacing | None) -> int | None:
    """Number of mixed copies that a budget in time pays for; None: as configured.

    It is the same whenever the study goes on. The dense outputs on the copies are computed here.
    """
    distillation = lab.phases.finetune.distillation
    mixing = lab.mixing
    if distillation is None or distillation.mixed != "auto" or mixing is None:
        return None
    if pacing is None or pacing.budget.measure != "seconds":
        return None
    if MIXED not in study.user_attrs:
        target_steps = pacing.target_steps
        per_epoch = lab.steps_per_epoch()
        epochs = sum(target_steps) / (max(1, len(target_steps)) * per_epoch)
        affordable = min(MOST_MIXED, mixing.affordable(MIXING * pacing.budget.amount))
        study.set_user_attr(MIXED, affordable if epochs >= MIXED_EPOCHS else 0)
    copies = int(study.user_attrs[MIXED])
    with lab.timed("evaluation"):
        mixing.prepare(copies)
    return copies


def _targets(plans: Plans, chain: ChainSettings, count: int) -> list[float]:
    fewer = chain.model_copy(update={"targets": count})
    return fewer.ratios(plans.context.largest_ratio, plans.context.least_ratio)


@dataclass(frozen=True)
class StepsDone:
    """Optimizer steps of the study's own trials.

    `usual` are those of a round where a plan does not say.
    """

    study: Study
    usual: int

    def done(self) -> float:
        """Steps of all trials so far."""
        total = 0
        for trial in own_trials(self.study):
            total += self._of(trial.user_attrs.get(MEASURED))
        return float(total)

    def charged(self) -> float:
        """Those steps, and something for trials without any.

        A failed trial counts `FEWEST` and a rejected one counts one: otherwise a space in which
        every plan fails would never end.
        """
        total = 0
        for trial in own_trials(self.study):
            if not trial.state.is_finished():
                continue
            measured = trial.user_attrs.get(MEASURED)
            total += FEWEST if measured is None else max(1, self._of(measured))
        return float(total)

    def _of(self, measured: Mapping[str, Any] | None) -> int:
        if measured is None:
            return 0
        round_steps = measured["plan"]["timing"]["round_steps"] or self.usual
        return int(measured["trained_rounds"] * round_steps)


def _require_time(budget: Budget, before: float) -> None:
    if before > 0.9 * budget.amount:
        raise ConfigError(
            f"study.budget={budget.text} must leave time for the search; the dense model and what "
            f"else comes before it took {before:.0f} s. They are kept: give the same command "
            "again, or a larger budget"
        )


def _speed(lab: Lab, plans: Plans, chain: ChainSettings, now: Callable[[], float]) -> Speed:
    """The speed of the dense model, and of the chain's middle and its end."""
    cuts = []
    if plans.cut:
        targets = _targets(plans, chain, max(1, chain.targets))
        middle = targets[len(targets) // 2]
        cuts = [plans.kept(middle), plans.kept(targets[-1])]
    return measure(lab, cuts, now)


def measure(lab: Lab, cuts: Sequence[Counts], now: Callable[[], float]) -> Speed:
    """Time steps, recalibration and validation of the dense model and of smaller ones.

    Each of `cuts` has the units that a smaller model keeps.
    """
    facts = lab.facts
    models: dict[float, nn.Module] = {1.0: copy_of(facts.model)}
    for kept in cuts:
        models[facts.ratios(kept)["flops"]] = cut_anyhow(facts.model, facts.structure, kept)
    seconds = {ratio: _timed(lab, model, now) for ratio, model in models.items()}
    ratios = sorted(seconds, reverse=True)
    steps = []
    beside = []
    for ratio in ratios:
        step, rest = seconds[ratio]
        steps.append(step)
        beside.append(rest)
    return Speed(tuple(ratios), tuple(steps), tuple(beside))


def _timed(lab: Lab, model: nn.Module, now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step, and of a trial beside its steps; the first run of one step warms up."""
    runs = []
    for steps in (1, 1, 1 + SPEED_STEPS):
        begin = now()
        lab.finetune(model, Training(1, 0, round_steps=steps))
        runs.append(now() - begin)
    _, one, several = runs
    step = max((several - one) / SPEED_STEPS, 0.25 * several / (1 + SPEED_STEPS))
    begin = now()
    lab.recalibrate(model, lab.phases.finetune.recalibration_batches, 0)
    lab.validate(model)
    evaluation = now() - begin
    return step, evaluation + USUAL_ROUNDS * max(0.0, one - step)
