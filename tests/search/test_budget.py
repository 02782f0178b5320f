"""A budget in time or epochs: how it is written, and what steps each trial gets from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.progress import Progress
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
from orchestrator.search.pace.pacing import Clock, Plans, pacing_of
from orchestrator.settings.budget import parse_budget
from tests.search.problems import bench, settings_of

SPEED = Speed((1.0, 0.2, 0.05), (2.0, 0.8, 0.5), (5.0, 4.0, 3.0))
CHAIN = [0.7, 0.43, 0.26, 0.16, 0.1, 0.06]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90.0, "seconds"),
        ("20min", 1200.0, "seconds"),
        ("1.5h", 5400.0, "seconds"),
        (" 2 d ", 172800.0, "seconds"),
        ("30epochs", 30.0, "epochs"),
        ("0.5epochs", 0.5, "epochs"),
    ],
)
def test_a_budget_is_a_number_and_a_unit(text: str, amount: float, unit: str) -> None:
    found = parse_budget(text)
    assert (found.amount, found.measure) == (amount, unit)
    assert parse_budget(found.text) == found
    assert parse_budget(found) is found


@pytest.mark.parametrize(
    "value",
    [
        "",
        "20",
        20,
        "min",
        "-1h",
        "0s",
        "0.0epochs",
        "1.5trials",
        "1h30min",
        "20 mins",
        "1e3s",
        "9" * 400 + "s",
        True,
    ],
)
def test_anything_else_is_refused_with_examples(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"a number and a unit: 90s, 20min, 1.5h, 2d or 30epochs; got"
    ):
        parse_budget(value)


@pytest.mark.parametrize(
    ("overrides", "depth"),
    [
        ([], False),
        (["method.depth=true"], True),
        (["study.budget=1h"], True),
        (["study.budget=1h", "method.depth=false"], False),
        (["study.budget=1h", "search.chain.depth=0"], False),
        (["study.budget=1h", "search.chain.targets=0"], False),
        (["study.budget=9epochs"], False),
        (["study.budget=1h", "method=weight_l1"], False),
    ],
)
def test_whole_blocks_go_in_a_chain_under_a_budget_in_time(
    tmp_path: Path, overrides: list[str], depth: bool
) -> None:
    settings = settings_of(tmp_path, *overrides)
    assert settings.depth == settings.identity()["method"]["depth"] == depth
    left_open = "method.depth" not in " ".join(overrides) and "method=weight_l1" not in overrides
    assert settings.with_depth(not depth).depth == (not depth if left_open else depth)


def test_a_budget_covers_less_of_the_same_however_it_is_written() -> None:
    assert parse_budget("1h").covers(parse_budget("60min"))
    assert parse_budget("2h").covers(parse_budget("60min"))
    assert not parse_budget("59min").covers(parse_budget("1h"))
    assert not parse_budget("2h").covers(parse_budget("1epochs"))


@dataclass
class Machine:
    """Runs trials at the price of `speed` times `slower`; trials at `rungs` first."""

    rungs: list[float]
    slower: Callable[[int], float] = lambda number: 1.0
    now: float = 0.0
    steps: float = 0.0
    ran: list[tuple[float, int]] = field(default_factory=list)

    def pace(
        self,
        available: float,
        most: int = 10**9,
        speed: Speed = SPEED,
    ) -> Pace:
        return Pace(
            speed,
            CHAIN,
            available,
            Sharing(most),
            Ledger(lambda: self.now, lambda: self.rungs, lambda: self.steps),
        )

    def run(self, pace: Pace, ratio: float = 0.3, units: int = 2, last: int = 100) -> None:
        while pace.more() and len(self.ran) < last:
            at = self.rungs[0] if self.rungs else ratio
            steps = units * pace(at, units)
            self.now += self.slower(len(self.ran)) * (
                steps * pace.speed.step_at(at) + pace.speed.beside_at(at)
            )
            self.steps += steps
            self.ran.append((at, steps))
            del self.rungs[:1]


@pytest.mark.parametrize(
    "slower", [lambda n: 2.0, lambda n: 1.0 + 0.2 * n, lambda n: 3.0 if n == 2 else 1.0]
)
def test_the_chain_ends_in_time_on_a_slower_machine(slower: Callable[[int], float]) -> None:
    machine = Machine([*CHAIN], slower)
    machine.run(machine.pace(1000.0))
    assert len(machine.ran) >= len(CHAIN)
    assert machine.now <= (1000.0 if slower(0) == 2.0 else 1100.0)
    if slower(2) < 3.0:  # a stall of a rung that takes all there is leaves nothing for the others
        assert min(steps for _, steps in machine.ran[:6]) > FEWEST


def test_the_chain_takes_what_is_available_the_same_time_on_all_rungs() -> None:
    machine = Machine([*CHAIN])
    pace = machine.pace(1000.0)
    expected = [pace.target_steps(ratio) for ratio in CHAIN]
    machine.run(pace)
    assert len(machine.ran) == len(CHAIN)
    times = [steps * SPEED.step_at(ratio) + SPEED.beside_at(ratio) for ratio, steps in machine.ran]
    assert max(times) - min(times) <= 10.0
    assert [steps for _, steps in machine.ran] == sorted(steps for _, steps in machine.ran)
    assert all(
        abs(steps - found) <= 4 + 0.02 * found
        for (_, steps), found in zip(machine.ran, expected, strict=True)
    )
    assert 980.0 <= machine.now <= 1000.0


@given(
    left=st.floats(1.0, 1e4),
    most=st.floats(10.0, 1e4),
    rungs=st.lists(st.floats(0.03, 0.9), min_size=1, max_size=8, unique=True),
)
def test_what_full_rungs_leave_goes_to_the_others(
    left: float, most: float, rungs: list[float]
) -> None:
    sharing = Sharing(most)
    steps = [sharing.steps(SPEED, left, rung, rungs) for rung in rungs]
    assert all(0.0 <= found <= most for found in steps)
    spent = sum(SPEED.price(rung, found) for rung, found in zip(rungs, steps, strict=True))
    if min(steps) < most and min(steps) > 0.0:
        assert spent == pytest.approx(left)
    if min(steps) == most:
        assert spent <= left * (1.0 + 1e-9)


def test_small_rungs_have_no_fewer_steps_than_large_ones() -> None:
    steps = [Sharing().steps(SPEED, 1000.0, rung, CHAIN) for rung in CHAIN]
    assert steps == sorted(steps)


def test_without_a_chain_trials_of_the_configured_length_end_in_time() -> None:
    machine = Machine([])
    pace = Unpaced(100.0, lambda: machine.now)
    trials = 0
    while pace.more():
        assert pace(0.3, 2) is None  # type: ignore[func-returns-value]
        machine.now += 7.0
        trials += 1
    assert trials == 14


def test_a_faster_machine_trains_for_longer() -> None:
    usual, fast = Machine([*CHAIN]), Machine([*CHAIN], lambda n: 0.5)
    for machine in (usual, fast):
        machine.run(machine.pace(1000.0))
        assert machine.now <= 1000.0
    assert fast.steps > 1.4 * usual.steps


def test_a_larger_budget_first_makes_rungs_longer_then_adds_trials() -> None:
    found = []
    for available in (300.0, 600.0, 1200.0, 2400.0, 4800.0):
        machine = Machine([*CHAIN])
        machine.run(machine.pace(available, most=150))
        assert machine.now <= available
        found.append((max(steps for _, steps in machine.ran), len(machine.ran) - len(CHAIN)))
    longest = [steps for steps, _ in found]
    assert longest == sorted(longest)
    assert longest[0] < 100
    assert longest[-1] == 150
    more = [trials for _, trials in found]
    assert more == sorted(more)
    assert more[:2] == [0, 0]
    assert more[-1] >= 10


def test_what_is_resumed_goes_on_with_what_is_left() -> None:
    whole = Machine([*CHAIN])
    whole.run(whole.pace(1000.0))
    parts = Machine([*CHAIN])
    parts.run(parts.pace(1000.0), last=3)
    assert len(parts.ran) == 3
    parts.run(parts.pace(1000.0))
    assert parts.ran == whole.ran


def test_time_that_is_gone_still_leaves_every_rung_a_step_per_unit() -> None:
    machine = Machine([*CHAIN], now=2000.0)
    machine.run(machine.pace(1000.0))
    assert machine.ran == [(ratio, 2) for ratio in CHAIN]


def test_a_trial_that_ends_early_says_nothing_of_the_speed() -> None:
    machine = Machine([])
    pace = machine.pace(10000.0, most=100)
    pace(0.3, 2)
    machine.steps += 10  # of a hundred: it was stopped
    machine.now += 10 * SPEED.step_at(0.3) + SPEED.beside_at(0.3)
    assert pace.more()
    assert pace.slower == pytest.approx(1.0)
    pace(0.3, 2)  # this one failed
    machine.now += 300.0
    assert pace.more()
    assert pace.slower == pytest.approx(1.0)


def test_epochs_are_shared_out_exactly() -> None:
    machine = Machine([*CHAIN])
    machine.run(machine.pace(300.0, speed=STEPWISE))
    assert [steps for _, steps in machine.ran] == [50] * 6
    assert machine.now == 300.0


def test_there_are_fewer_targets_where_the_dearest_would_get_too_few_steps() -> None:
    def rungs(count: int) -> list[float]:
        return CHAIN[:count]

    dearest = SPEED.beside_at(CHAIN[0]) + FEWEST * SPEED.step_at(CHAIN[0])
    assert fewer_targets(rungs, 6, SPEED, 6 * dearest, Sharing()) == 6
    assert fewer_targets(rungs, 6, SPEED, 6 * dearest - 1.0, Sharing()) == 5
    assert fewer_targets(rungs, 6, SPEED, 0.0, Sharing()) == 3
    assert fewer_targets(rungs, 2, SPEED, 0.0, Sharing()) == 2


def test_the_dense_model_the_middle_and_the_end_of_the_chain_are_timed(tmp_path: Path) -> None:
    here = bench(
        tmp_path, tmp_path / "runs", "study.budget=1h", "search.chain.targets=5", "model.width=16"
    )
    ticks = itertools.count()
    study = optuna.create_study(directions=["maximize", "minimize"])
    plans = Plans(here.facts, here.space, here.context)
    clock = Clock(0.0, lambda: float(next(ticks)))
    pacing = pacing_of(here.settings, here.lab, plans, study, clock, Progress())
    assert pacing is not None
    assert pacing.speed.ratios == pytest.approx(
        (1.0, pacing.targets[2], pacing.targets[-1]), rel=0.2
    )


def test_a_speed_is_interpolated_over_the_log_of_flops_and_flat_for_sparse_models() -> None:
    assert SPEED.step_at(0.2) == pytest.approx(0.8)
    assert 0.5 < SPEED.step_at(0.1) < 0.8
    assert SPEED.step_at(0.01) == 0.5
    dense = Speed((1.0,), (2.0,), (5.0,))
    assert dense.step_at(0.1) == dense.step_at(1.0) == 2.0
