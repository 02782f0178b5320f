"""Latency: models in turn, beside the dense one, in each engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.inputs import Inputs
from orchestrator.compose import load_settings
from orchestrator.export.onnx import write_onnx
from orchestrator.latency import timing
from orchestrator.latency.bench import Bench, LatencyConditions, alone
from orchestrator.latency.engines import ENGINES
from orchestrator.latency.timing import (
    LEAST_TURNS,
    MOST_TURNS,
    longest_wait,
    ratios_to_first,
    timed_in_turn,
)
from orchestrator.search.lab.latencies import latency_conditions
from orchestrator.settings.objectives import ObjectiveSettings

EXAMPLE = Inputs((torch.zeros(1, 1, 8, 8),))


@dataclass
class Machine:
    """A machine whose clock and whose queue of waiting threads are told."""

    now: float = 0.0
    queued: float = 0.0
    factor: float = 1.0

    def model(self, ms: float, waits: float = 0.0) -> nn.Module:
        """A pass takes `ms` by the machine's factor, and waits `waits` ms for a core besides."""
        machine = self

        class Slow(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                machine.now += (ms * machine.factor + waits) / 1000.0
                machine.queued += waits / 1000.0
                return x

        return Slow()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr("orchestrator.latency.timing.time.perf_counter", lambda: made.now)
    monkeypatch.setattr(timing, "waited", lambda: {"1": made.queued, "2": 0.0})
    return made


def test_a_machine_that_slows_down_slows_both_of_a_pair(machine: Machine) -> None:
    bench = Bench(LatencyConditions(ENGINES["pytorch"], EXAMPLE), machine.model(4.0), lambda: 10.0)
    for factor in (1.0, 3.0):
        machine.factor = factor
        assert bench(machine.model(2.0)).median == pytest.approx(5.0)


def test_waiting_for_a_core_is_no_part_of_a_pass(machine: Machine) -> None:
    """A long pass is interrupted where a short one is not: the clock alone favours small models."""
    bench = Bench(
        LatencyConditions(ENGINES["pytorch"], EXAMPLE), machine.model(4.0, waits=9.0), lambda: 10.0
    )
    assert bench(machine.model(2.0)).median == pytest.approx(5.0)


def test_threads_that_come_and_go_are_no_wait() -> None:
    assert longest_wait({"1": 1.0, "2": 1.0}, {"1": 1.5, "2": 1.2, "3": 9.0}) == 0.5
    assert longest_wait({}, {"1": 1.0}) == 0.0


def test_every_model_is_passed_as_often_before_and_after_each_other() -> None:
    order: list[str] = []
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    rows = timed_in_turn(runs, seconds=0.0)
    assert rows.shape == (LEAST_TURNS, 2)
    timed = order[-4 * LEAST_TURNS :]
    assert timed[:8] == ["a", "a", "b", "b", "b", "b", "a", "a"]


def test_quick_models_are_passed_a_hundred_times_and_no_more() -> None:
    assert len(timed_in_turn([lambda: None, lambda: None], seconds=60.0)) == MOST_TURNS


def test_ratios_are_of_the_same_turn() -> None:
    milliseconds = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    (ratio,) = ratios_to_first(milliseconds)
    assert (ratio.lower, ratio.median, ratio.upper) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("name", ["pytorch", "onnxruntime"])
def test_an_engine_measures_and_leaves_the_model_as_it_was(name: str) -> None:
    model = SmallResNet(10, width=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    spread, unsteadiness = alone(latency_conditions(ObjectiveSettings(engine=name), EXAMPLE), model)
    assert 0.0 < spread.lower <= spread.median <= spread.upper
    assert unsteadiness >= 0.0
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime_int8", "compile"])
def test_slow_engines_measure_too(name: str) -> None:
    ENGINES[name].require()
    spread, _ = alone(LatencyConditions(ENGINES[name], EXAMPLE), SmallResNet(10, width=4))
    assert spread.median > 0.0


def test_an_exported_model_runs_as_the_file_that_it_is(tmp_path) -> None:
    exported = write_onnx(SmallResNet(10, width=4), [EXAMPLE], tmp_path / "model.onnx")
    for name in ("pytorch", "onnxruntime"):
        assert alone(LatencyConditions(ENGINES[name], EXAMPLE), exported)[0].median > 0.0


def test_a_batch_is_repeated_samples() -> None:
    conditions = latency_conditions(ObjectiveSettings(batch_size=8, engine_threads=1), EXAMPLE)
    assert conditions.example.args[0].shape == (8, 1, 8, 8)
    assert conditions.threads == 1


def test_a_batch_that_cannot_be_made_is_refused() -> None:
    apart = Inputs((torch.zeros(1, 3), torch.zeros(7)))
    with pytest.raises(ConfigError, match=r"objectives.batch_size=8 needs.*take batch_size=1"):
        latency_conditions(ObjectiveSettings(batch_size=8), apart)


def test_settings_name_every_engine() -> None:
    for name in ENGINES:
        assert ObjectiveSettings(engine=name).engine == name


def test_widths_are_multiples_of_eight_where_onnx_runtime_is_the_goal() -> None:
    plain = load_settings({"experiment": "digits_small"})
    other = load_settings({"experiment": "digits_small", "objectives": {"engine": "onnxruntime"}})
    goal = load_settings(
        {
            "experiment": "digits_small",
            "objectives": {"engine": "onnxruntime", "costs": ["latency_ms"]},
        }
    )
    told = load_settings(
        {
            "experiment": "digits_small",
            "objectives": {"engine": "onnxruntime", "costs": ["latency_ms"]},
            "method": {"round_to": 2},
        }
    )
    multiples = [settings.method.rounding for settings in (plain, other, goal, told)]
    assert multiples == [1, 1, 8, 2]


def test_latency_is_measured_where_the_example_lies() -> None:
    """Lightning leaves a model on the CPU; its inputs may be elsewhere."""
    model = nn.Linear(3, 1)
    example = Inputs((torch.zeros(1, 3, device="meta"),))
    LatencyConditions(ENGINES["pytorch"], example).prepare(model)()
    assert model.weight.device.type == "meta"
