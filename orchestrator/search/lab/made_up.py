"""A laboratory that trains nothing: the quality of a plan in closed form, in milliseconds.

Everything else is real: structure, scores, removal, plans and weights on disk, leases, budgets, records. So a search,
its storage and its workers can be tried in seconds, and are tested with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_modules.phases.fit import DivergedError, OnRound
from lightning_modules.recipe import digest
from orchestrator.search.lab.problem import Problem, Training
from orchestrator.settings import MadeUpSettings, Settings

BEST = 0.95
"""Quality of an endlessly trained dense model; a metric to be small is its distance from 1."""
NARROW = 0.25
"""How much of the quality a model without parameters would lose; with the square root of what is left it returns."""
UNTRAINED = 0.2
"""How much is missing without any finetuning; each round takes half of the rest."""


class MadeUpProblem(Problem):
    """Metrics follow from the parameters left and the rounds of finetuning, with noise.

    The noise follows from all that a real training would depend on: the same trial gives the same metrics, and another
    optimizer, seed or distillation gives others. Failures and slowness are as the settings say.
    """

    def recalibrate(self, model: nn.Module, count: int, seed: int) -> None:
        self._work("recalibrate", count, seed)

    def finetune(
        self, model: nn.Module, training: Training, on_round: OnRound | None = None
    ) -> int:
        """The rounds done. Errors: DivergedError as often as `made_up.failures` says."""
        draw = self._work("finetune", _phases(self.settings), replace(training, callbacks=()))
        if on_round is not None and draw.random() < self._made_up.failures:
            raise DivergedError("the made-up training loss became nan")
        noise = self._made_up.noise * draw.standard_normal(training.rounds)
        with torch.no_grad():  # weights differ where trainings do, as digests and replays expect
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(1.0 + 1e-3 * float(noise[-1]))
        steps = training.round_steps or self.settings.phases.finetune.round_steps
        for number in range(1, training.rounds + 1):
            time.sleep(self._made_up.seconds * steps)
            metrics = self._metrics(model, number, float(noise[number - 1]))
            if on_round is not None and not on_round(number, metrics):
                return number
        return training.rounds

    def validate(self, model: nn.Module, level: float | None = None) -> dict[str, float]:
        return self._metrics(model, 2, self._drawn("validate", level, _fingerprint(model)))

    def test(self, model: nn.Module, level: float | None = None) -> dict[str, float]:
        """Metrics on test data: for confirmed models only."""
        return self._metrics(model, 2, self._drawn("test", level, _fingerprint(model)))

    @property
    def _made_up(self) -> MadeUpSettings:
        assert self.settings.made_up is not None
        return self.settings.made_up

    def _work(self, *conditions: object) -> np.random.Generator:
        self.check()
        key = digest([str(condition) for condition in conditions])
        return np.random.default_rng(int(key, 16))

    def _drawn(self, *conditions: object) -> float:
        return self._made_up.noise * float(self._work(*conditions).standard_normal())

    def _metrics(self, model: nn.Module, rounds: int, noise: float) -> dict[str, float]:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return metrics_of(self.settings, parameters / max(1, self.dense_params), rounds, noise)


def _fingerprint(model: nn.Module) -> float:
    """A number that is another one for other weights."""
    return float(sum(parameter.detach().double().abs().sum() for parameter in model.parameters()))


def metrics_of(
    settings: Settings, ratio: float, rounds: int, noise: float = 0.0
) -> dict[str, float]:
    """Every metric of the task, for a model with this ratio of the dense parameters after some rounds of finetuning."""
    from orchestrator.search.goals import task_directions

    short = NARROW * (1.0 - np.sqrt(min(1.0, ratio))) + UNTRAINED * 0.5**rounds
    good = float(np.clip(BEST - short + noise, 0.0, 1.0))
    return {
        name: good if direction == "maximize" else 1.0 - good
        for name, direction in task_directions(settings).items()
    }


def _phases(settings: Settings) -> Mapping[str, Any]:
    """What a real training would depend on."""
    plain: Mapping[str, Any] = settings.plain()
    return {name: plain[name] for name in ("model", "data", "task", "phases", "method")}
