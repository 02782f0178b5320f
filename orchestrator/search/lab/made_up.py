"""A laboratory that trains nothing: the quality of a plan in closed form, in milliseconds.

Everything else is real: structure, scores, removal, plans and weights on disk, leases, budgets,
records. So a search, its storage and its workers can be tried in seconds, and are tested with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_modules.phases.fit import DivergedError, OnRound
from lightning_modules.recipe import digest
from lightning_modules.tasks.metrics import Direction
from orchestrator.search.directions import task_directions
from orchestrator.search.lab.lab import Evaluated, Lab, Training
from orchestrator.settings import MadeUpSettings, Settings

BEST_QUALITY = 0.95
"""Quality of an endlessly trained dense model; a metric to be small is its distance from 1."""
NARROW = 0.25
"""Share of the quality that a model without parameters would lose.

The loss falls with the square root of the share of parameters that is left.
"""
UNTRAINED = 0.2
"""Share of the quality that is missing without any finetuning.

Each round takes away half of the rest.
"""


@dataclass(frozen=True)
class Conditions:
    """What a made-up metric depends on beside the model.

    This is everything that a real training would depend on.
    """

    settings: MadeUpSettings
    directions: Mapping[str, Direction]
    recipe: Mapping[str, Any]


def conditions_of(settings: Settings) -> Conditions:
    """The conditions of a study with `made_up` in its settings."""
    assert settings.made_up is not None
    plain: Mapping[str, Any] = settings.plain()
    recipe = {name: plain[name] for name in ("model", "data", "task", "phases")}
    return Conditions(settings.made_up, task_directions(settings), recipe)


@dataclass(frozen=True, kw_only=True)
class MadeUpLab(Lab):
    """Metrics follow from the parameters left and the rounds of finetuning, with noise.

    The noise follows from all that a real training would depend on: the same trial gives the same
    metrics, and another optimizer, seed or distillation gives others. Failures and slowness are as
    the settings say.
    """

    made_up: Conditions

    def recalibrate(self, model: nn.Module, count: int, seed: int) -> None:
        self._work("recalibrate", count, seed)

    def finetune(
        self, model: nn.Module, training: Training, on_round: OnRound | None = None
    ) -> int:
        """Make up a finetuning; return the rounds done.

        Errors: DivergedError as often as `made_up.failures` says.
        """
        settings = self.made_up.settings
        draw = self._work("finetune", self.made_up.recipe, replace(training, callbacks=()))
        if on_round is not None and draw.random() < settings.failures:
            raise DivergedError("the made-up training loss became nan")
        noise = settings.noise * draw.standard_normal(training.rounds)
        with torch.no_grad():
            # weights differ where trainings do, as digests and replays expect
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(1.0 + 1e-3 * float(noise[-1]))
        steps = training.round_steps or self.phases.finetune.round_steps
        for number in range(1, training.rounds + 1):
            time.sleep(settings.seconds * steps)
            metrics = self._metrics(model, number, float(noise[number - 1]))
            if on_round is not None and not on_round(number, metrics):
                return number
        return training.rounds

    def measure(self, model: nn.Module, batches: Any, level: float | None) -> Evaluated:
        """Metrics; test data gives other noise than validation data, by the number of batches."""
        size = len(batches) if hasattr(batches, "__len__") else 0
        draw = self._work("measure", size, level, _fingerprint(model))
        noise = self.made_up.settings.noise * float(draw.standard_normal())
        return Evaluated(self._metrics(model, 2, noise))

    def _work(self, *conditions: object) -> np.random.Generator:
        self.check()
        key = digest([str(condition) for condition in conditions])
        return np.random.default_rng(int(key, 16))

    def _metrics(self, model: nn.Module, rounds: int, noise: float) -> dict[str, float]:
        parameters = 0
        for parameter in model.parameters():
            parameters += parameter.numel()
        ratio = parameters / max(1, self.facts.dense_params)
        return metrics_of(self.made_up.directions, ratio, rounds, noise)


def _fingerprint(model: nn.Module) -> float:
    """A number that differs for other weights."""
    total = 0.0
    for parameter in model.parameters():
        total += float(parameter.detach().double().abs().sum())
    return total


def metrics_of(
    directions: Mapping[str, Direction], ratio: float, rounds: int, noise: float = 0.0
) -> dict[str, float]:
    """Every metric of the task, for a model after some rounds of finetuning.

    `ratio` is that of its parameters to the dense ones.
    """
    narrow = NARROW * (1.0 - np.sqrt(min(1.0, ratio)))
    short = narrow + UNTRAINED * 0.5**rounds
    good = float(np.clip(BEST_QUALITY - short + noise, 0.0, 1.0))
    metrics = {}
    for name, direction in directions.items():
        metrics[name] = good if direction == "maximize" else 1.0 - good
    return metrics
