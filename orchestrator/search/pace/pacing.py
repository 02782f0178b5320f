"""A study under a budget in time: the machine's speed, the pace of its trials, and what is left for
confirming.
"""

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
from orchestrator.search.space import Params, Space, Terrain
from orchestrator.search.space.allocation import cut_anyhow
from orchestrator.search.studies.queue import own_trials, queued
from orchestrator.search.studies.trial import MEASURED, SECONDS, Study
from orchestrator.settings import ChainSettings, PhaseSettings, Settings
from orchestrator.settings.budget import Budget

CONFIRMING = 0.2
"""The part of a budget in time that is kept for confirming the front."""
SPEED_STEPS = 3
"""Optimizer steps that are timed at each of the ratios."""
USUAL_ROUNDS = 2
"""Rounds of finetuning of a trial: each begins and ends with work that is no optimizer step."""
TARGETS = "targets"
"""Of the study: the targets of its chain."""
MIXED = "mixed"
"""Of the study: the number of mixed copies of its training data."""
MIXING = 0.05
"""Share of a budget in time that goes into the dense outputs on mixed copies of the training data.
"""
MOST_MIXED = 8
"""Mixed copies at most."""
MIXED_EPOCHS = 10.0
"""Mixed copies are used where the chain's plans have this many epochs on average: with fewer, the
data is new enough.
"""


@dataclass(frozen=True)
class Pacing:
    """`targets` of the chain, the `pace` of trials, and the clock of the whole budget, in its
    unit.
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
        """Of the whole run; None where the budget is not in seconds."""
        if self.budget.measure != "seconds":
            return None
        return max(0.0, self.budget.amount - self.clock())

    def confirming(self, phases: PhaseSettings, flops_ratios: Sequence[float]) -> int | None:
        """Steps of a round with which models of these FLOPs, and the dense one, are confirmed in
        the time that is left.

        None where the budget is not in seconds: confirmed as configured.
        """
        if (left := self.seconds_left()) is None:
            return None
        how, usual = phases.confirm, phases.finetune.round_steps
        models = [1.0, *flops_ratios]
        beside, step = sum(map(self.speed.beside_at, models)), sum(map(self.speed.step_at, models))
        steps = (left / (self.pace.slower * len(how.seeds)) - beside) / (how.rounds * step)
        return int(np.clip(steps, FEWEST, max(FEWEST, 10 * usual)))

    def affords(
        self,
        lab: Lab,
        steps: Sequence[LadderStep],
        confirmed: Sequence[LadderStep],
        round_steps: int | None,
    ) -> bool:
        """Whether a ladder with these steps, some of them `confirmed` as in `confirming`, would end
        in time.
        """
        if (left := self.seconds_left()) is None:
            return True
        how, usual = lab.phases.confirm, lab.phases.finetune.round_steps
        seconds = 0.0
        for step, training_steps in with_training_steps(steps, usual):
            seconds += self.speed.price(self._ratio(lab.facts, step), training_steps)
        confirming = how.rounds * (round_steps or usual)
        for step in confirmed:
            price = self.speed.price(self._ratio(lab.facts, step), confirming)
            seconds += len(how.seeds) * price
        return self.pace.slower * seconds <= left

    def _ratio(self, facts: Facts, step: LadderStep) -> float:
        """Of a ladder's FLOPs: where single weights are pruned they stay the dense ones."""
        return step.macs / facts.dense_macs if len(self.speed.ratios) > 1 else 1.0


@dataclass(frozen=True)
class Plans:
    """The FLOPs ratio that a trial's parameters come to: what its steps cost."""

    facts: Facts
    space: Space
    terrain: Terrain

    @property
    def cut(self) -> bool:
        """Whether plans remove anything; weights at zero cost as much as others."""
        return self.terrain.weight is None

    def flops_ratio(self, params: Params) -> float:
        if not self.cut or not params:  # a user's own plan may keep most of the model
            return 1.0
        try:
            kept = self._kept(params)
        except PlanError:  # the trial will say so
            return 1.0
        return self.facts.ratios(kept)["flops"]

    def at(self, target: float) -> float:
        return self.flops_ratio(self.space.chain(self.terrain, target)) if self.cut else 1.0

    def kept(self, target: float) -> Counts:
        """Of the chain's plan there; the dense counts where that is no plan."""
        try:
            return self._kept(self.space.chain(self.terrain, target))
        except PlanError:
            return self.facts.structure.sizes

    def _kept(self, params: Params) -> Counts:
        return self.space.propose(self.terrain, params).counts(self.facts.structure)


@dataclass(frozen=True)
class Clock:
    """When this run began, by `now` in seconds, and the share of a budget in time that is left for
    confirming.
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
    """None where the study has no budget in time or epochs.

    Errors: ConfigError where what came before the first trial has used the budget up.
    """
    budget, chain = settings.study.budget, settings.search.chain
    if budget is None:
        return None
    per_epoch = len(lab.data.train_batches(0))
    steps = StepsDone(study, lab.phases.finetune.round_steps)
    if budget.measure == "epochs":
        speed, available, spent = STEPWISE, budget.amount * per_epoch, steps.charged
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
        count = fewer_targets(
            lambda count: [plans.at(target) for target in _targets(plans, chain, count)],
            chain.targets,
            speed,
            available - spent(),
            sharing,
        )
        study.set_user_attr(TARGETS, _targets(plans, chain, count))
    targets = tuple(study.user_attrs[TARGETS])

    def left() -> list[float]:
        return [plans.flops_ratio(params) for params in queued(study)]

    priced = [plans.at(target) for target in targets]
    pace = Pace(speed, priced, available, sharing, Ledger(spent, left, steps.done))
    return Pacing(budget, targets, pace, speed, spent)


def _seconds_spent(study: Study, clock: Clock) -> Callable[[], float]:
    """Of the trials of earlier runs, and of this run so far."""
    earlier = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in own_trials(study))
    return lambda: float(earlier + clock.elapsed)


def _seconds_available(budget: Budget, study: Study, clock: Clock) -> float:
    """For the search and what came before it. Errors: ConfigError where that has used the budget up
    already.
    """
    before = clock.elapsed
    if not any(trial.state.is_finished() for trial in own_trials(study)):
        _require_time(budget, before)
    return before + (1.0 - clock.confirming) * (budget.amount - before)


def mixed_copies(lab: Lab, study: Study, pacing: Pacing | None) -> int | None:
    """As many as a budget in time pays for where they are to follow from it, the same whenever the
    study goes on.

    None: as configured. The dense outputs on them are there afterwards.
    """
    how, mixing = lab.phases.finetune.distillation, lab.mixing
    if how is None or how.mixed != "auto" or mixing is None:
        return None
    if pacing is None or pacing.budget.measure != "seconds":
        return None
    if MIXED not in study.user_attrs:
        target_steps = pacing.target_steps
        per_epoch = len(lab.data.train_batches(0))
        epochs = sum(target_steps) / (max(1, len(target_steps)) * per_epoch)
        affordable = min(MOST_MIXED, mixing.affordable(MIXING * pacing.budget.amount))
        study.set_user_attr(MIXED, affordable if epochs >= MIXED_EPOCHS else 0)
    copies = int(study.user_attrs[MIXED])
    with lab.timed("evaluation"):
        mixing.prepare(copies)
    return copies


def _targets(plans: Plans, chain: ChainSettings, count: int) -> list[float]:
    fewer = chain.model_copy(update={"targets": count})
    return fewer.ratios(plans.terrain.max_flops_ratio)


@dataclass(frozen=True)
class StepsDone:
    """Optimizer steps of the study's own trials; `usual` are those of a round where a plan does not
    say.
    """

    study: Study
    usual: int

    def done(self) -> float:
        """Of all trials so far."""
        trials = own_trials(self.study)
        return float(sum(self._of(trial.user_attrs.get(MEASURED)) for trial in trials))

    def charged(self) -> float:
        """Those, and something for trials without any: `FEWEST` for a failed one, one for a
        rejected one.

        Otherwise a space in which every plan fails would never end.
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
            "else comes before it "
            f"took {before:.0f} s. They are kept: give the same command again, or a larger budget"
        )


def _speed(lab: Lab, plans: Plans, chain: ChainSettings, now: Callable[[], float]) -> Speed:
    """Of the dense model, the chain's middle and its end."""
    targets = _targets(plans, chain, max(1, chain.targets))
    cuts = [plans.kept(targets[at]) for at in (len(targets) // 2, -1)] if plans.cut else []
    return measure(lab, cuts, now)


def measure(lab: Lab, cuts: Sequence[Counts], now: Callable[[], float]) -> Speed:
    """Time steps, recalibration and validation of the dense model and of what is left with these
    units kept.
    """
    facts = lab.facts
    models: dict[float, nn.Module] = {1.0: copy.deepcopy(facts.model)}
    for kept in cuts:
        models[facts.ratios(kept)["flops"]] = cut_anyhow(facts.model, facts.structure, kept)
    seconds = {ratio: _timed(lab, model, now) for ratio, model in models.items()}
    falling = tuple(sorted(seconds, reverse=True))
    return Speed(
        falling,
        tuple(seconds[ratio][0] for ratio in falling),
        tuple(seconds[ratio][1] for ratio in falling),
    )


def _timed(lab: Lab, model: nn.Module, now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step, and of a trial beside its steps; the first run of one step warms up."""
    moments = [0.0]
    for steps in (1, 1, 1 + SPEED_STEPS):
        begin = now()
        lab.finetune(model, Training(1, 0, round_steps=steps))
        moments.append(now() - begin)
    one, several = moments[-2:]
    step = max((several - one) / SPEED_STEPS, 0.25 * several / (1 + SPEED_STEPS))
    begin = now()
    lab.recalibrate(model, lab.phases.finetune.recalibration_batches, 0)
    lab.validate(model)
    return step, now() - begin + USUAL_ROUNDS * max(0.0, one - step)
