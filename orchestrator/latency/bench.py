"""The bench on which models are timed beside the dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from orchestrator.latency.engines import Engine
from orchestrator.latency.timing import (
    TURN_SECONDS,
    Pass,
    Spread,
    ratios_to_first,
    timed_in_turn,
)


@dataclass(frozen=True)
class LatencyConditions:
    """Under which a latency holds: the engine, its inputs with their batch, its threads.

    `threads` None is torch's number.
    """

    engine: Engine
    example: Inputs
    threads: int | None = None

    def prepare(self, model: nn.Module) -> Pass:
        """Errors: ConfigError for a model that the engine does not take."""
        return self.engine.prepare(model, self.example, self.threads)


@dataclass(frozen=True)
class Bench:
    """Times models beside the `dense` one, turn by turn.

    `reference` gives the dense model's latency in ms, which is measured once and kept. A latency is
    that many milliseconds times the model's ratio to the dense one in the same turns. So latencies
    compare that were measured at different hours, on a machine with other work.
    """

    conditions: LatencyConditions
    dense: nn.Module
    reference: Callable[[], float]

    @cached_property
    def dense_ms(self) -> float:
        """Milliseconds of a pass of the dense model."""
        return self.reference()

    def __call__(self, model: nn.Module) -> Spread:
        """Milliseconds of a pass."""
        return self.all_of([model])[0]

    def all_of(self, models: Sequence[nn.Module]) -> list[Spread]:
        """Milliseconds of a pass of each, all timed in the same turns."""
        runs = [self.conditions.prepare(model) for model in models]
        ratios = ratios_to_first(timed_in_turn([self._dense_run, *runs], TURN_SECONDS * len(runs)))
        return [ratio.times(self.dense_ms) for ratio in ratios]

    @cached_property
    def _dense_run(self) -> Pass:
        # a copy: whoever has the dense model may move it
        return self.conditions.prepare(copy_of(self.dense))


def alone(conditions: LatencyConditions, model: nn.Module) -> tuple[Spread, float]:
    """Milliseconds of a pass of the model, and how steady the machine is.

    The model is timed beside itself. The second number is the distance of the quartiles of the
    ratio of the two: what differs by less cannot be told apart.
    """
    run = conditions.prepare(model)
    milliseconds = timed_in_turn([run, run])
    (ratio,) = ratios_to_first(milliseconds)
    return Spread.of(np.concatenate(milliseconds.T)), ratio.relative
