"""The stopping rules on fronts made by hand and in whole studies on a made-up problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
import pytest

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe
from orchestrator.search.goals import Goals
from orchestrator.search.plans.measurement import Measurement, Report
from orchestrator.search.stopping import (
    Band,
    Never,
    Pareto,
    Standing,
    Stopping,
    Tally,
    places,
    trend,
)
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import run_trials
from orchestrator.search.studies.queue import enqueue_chain
from orchestrator.search.studies.study import Rules, Trials
from orchestrator.search.studies.trial import RUNGS

RULE = Band(keep=0.5, max_drop=0.3)
MANY = Tally(100, 50)


def at(trial: int, flops_ratio: float, loss: float, rung: int = 1, drop: float = 0.0) -> Standing:
    return Standing(trial, rung, flops_ratio, loss, drop)


PEERS = [at(0, 0.30, 0.10), at(1, 0.28, 0.20), at(2, 0.26, 0.30), at(3, 0.25, 0.40)]


def test_the_worse_half_of_a_band_is_stopped_with_the_reason() -> None:
    reason = RULE(at(9, 0.27, 0.35), PEERS, MANY)
    assert reason is not None
    assert "4 of 4 trials within 0.5 octaves had a lower loss for their cost at rung 1" in reason


def test_the_better_half_goes_on() -> None:
    assert RULE(at(9, 0.27, 0.15), PEERS, MANY) is None


def test_the_front_within_a_band_goes_on() -> None:
    # behind the trend, yet no trial of at most its FLOPs has a smaller loss
    peers = [at(0, 0.31, 0.10), at(1, 0.30, 0.11), at(2, 0.29, 0.12), at(3, 0.24, 0.50)]
    assert RULE(at(9, 0.27, 0.45), peers, MANY) is None
    assert RULE(at(9, 0.27, 0.51), peers, MANY) is not None


def test_losses_count_from_the_trend_so_that_small_models_are_not_behind() -> None:
    assert (
        RULE(at(9, 0.24, 0.42), PEERS, MANY) is None
    )  # the largest loss of all, for the least FLOPs
    assert RULE(at(9, 0.24, 0.60), PEERS, MANY) is not None
    assert trend(np.log2([0.5, 0.25, 0.125]), np.array([0.1, 0.2, 0.3])) == pytest.approx(-0.1)
    assert (
        trend(np.log2([0.5, 0.25]), np.array([0.3, 0.2])) == 0.0
    )  # larger models are not allowed for
    assert trend(np.zeros(3), np.arange(3.0)) == 0.0


@pytest.mark.parametrize("rule", [RULE, Pareto()])
def test_what_dominates_everything_is_never_stopped(rule: Band | Pareto) -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        peers = [
            at(
                i,
                float(2 ** rng.uniform(-2.4, -2.0)),
                float(rng.choice([rng.uniform(0.1, 2.0), 0.5])),
            )
            for i in range(int(rng.integers(1, 40)))
        ]
        least = replace(min(peers, key=lambda peer: peer.flops_ratio), trial=99)
        best = min(peer.loss for peer in peers)
        for mine in (
            replace(least, loss=best),
            replace(least, loss=best - 0.01),
            replace(least, flops_ratio=0.18),
        ):
            assert rule(replace(mine, loss=min(mine.loss, best)), peers, MANY) is None


@pytest.mark.parametrize("rule", [RULE, Pareto()])
def test_what_most_others_dominate_is_stopped(rule: Band | Pareto) -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        peers = [
            at(i, float(2 ** rng.uniform(-2.4, -2.0)), float(rng.uniform(0.1, 2.0)))
            for i in range(20)
        ]
        assert rule(at(99, 2**-2.0, 2.0), peers, MANY) is not None


def test_only_the_same_rung_and_about_the_same_cost_compare() -> None:
    far = [at(i, 0.05, 0.01) for i in range(5)]
    later = [at(i, 0.27, 0.01, rung=2) for i in range(5)]
    assert RULE(at(9, 0.27, 9.0), [*far, *later], MANY) is None
    assert Pareto()(at(9, 0.27, 9.0), later, MANY) is None


def test_few_peers_decide_nothing() -> None:
    assert RULE(at(9, 0.27, 9.0), PEERS[:2], MANY) is None
    assert Pareto()(at(9, 0.27, 9.0), PEERS, MANY) is None


def test_nobody_is_stopped_while_few_are_completed_but_the_quality_floor_holds() -> None:
    peers = [*PEERS, at(4, 0.29, 0.15), at(5, 0.27, 0.25)]
    for rule in (RULE, Pareto()):
        assert rule(at(9, 0.31, 0.9), peers, Tally(19, 3)) is not None
        assert rule(at(9, 0.31, 0.9), peers, Tally(20, 3)) is None
        assert (
            rule(at(9, 0.31, 0.9, drop=0.31), peers, Tally(20, 3))
            == "lost 0.310 of quality, more than 0.3"
        )
        assert rule(at(9, 0.31, 0.9), peers, Tally()) is None


@pytest.mark.parametrize("rule", [RULE, Pareto()])
def test_the_quality_floor_holds_for_the_cheapest_too(rule: Band | Pareto) -> None:
    reason = rule(at(9, 0.001, 0.0, drop=0.31), [], MANY)
    assert reason is not None
    assert "more than 0.3" in reason


@pytest.mark.parametrize("grow", [False, True])
def test_ever_smaller_or_larger_models_do_not_eat_the_budget(grow: bool) -> None:
    """Each is the extreme of its time: on the front or not, a part of them is stopped at each
    rung.
    """
    rng = np.random.default_rng(0)
    peers: list[Standing] = []
    stopped = []
    for trial in range(100):
        ratio = 0.02 * 2 ** (0.04 * trial) if grow else 0.6 * 2 ** (-0.04 * trial)
        loss = 0.2 - 0.05 * math.log2(ratio) + float(rng.uniform(0.0, 0.3))
        mine = at(trial, ratio, loss)
        stopped.append(RULE(mine, peers, MANY) is not None)
        peers.append(mine)
    assert (0.4 if grow else 0.15) <= sum(stopped) / len(stopped) <= (0.6 if grow else 0.35)


def test_about_half_of_random_trials_go_on() -> None:
    losses = [((7919 * i) % 1000) / 1000 for i in range(200)]
    for rule in (RULE, Pareto()):
        peers: list[Standing] = []
        gone_on = 0
        for trial, loss in enumerate(losses):
            mine = at(trial, 0.25 + 0.0001 * ((31 * trial) % 100), loss)
            gone_on += rule(mine, peers, MANY) is None
            peers.append(mine)
        assert 0.4 <= gone_on / len(losses) <= 0.65


def test_places_are_ranks_first_then_hypervolume() -> None:
    points = np.array([[0.9, 0.9], [0.1, 0.5], [0.5, 0.1], [0.2, 0.2], [0.6, 0.6], [0.6, 0.6]])
    found = places(points)
    assert found[3] == 0  # on the front with the largest volume of its own
    assert sorted(found[[1, 2]].tolist()) == [1, 1]
    assert found[[4, 5]].tolist() == [3, 3]
    assert found[0] == 5
    # the trap: sorted indices in the place of ranks would put the newcomer, first in the list,
    # anywhere
    for n in range(2, 30):
        cloud = np.random.default_rng(n).uniform(0.5, 1.0, (n, 2))
        assert places(np.vstack([[0.1, 0.1], cloud]))[0] == 0


def test_never_never_stops() -> None:
    assert Never()(at(9, 0.27, 9.0, drop=1.0), PEERS, MANY) is None


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stopping.keep must be a share in \(0, 1\]; got 0"):
        Band(keep=0.0)
    with pytest.raises(ConfigError, match=r"stopping.max_drop must be above 0; got 0"):
        Pareto(max_drop=0.0)


@dataclass(frozen=True)
class MadePlan:
    """Parameters in the place of a plan."""

    params: dict[str, float]
    asked: tuple[object, ...] = ()


class Made:
    """A space of the log FLOPs and six choices that cost loss where they are off."""

    needs_profile = False
    levels = None

    def distributions(self, context: Any) -> dict[str, Any]:
        unit = optuna.distributions.FloatDistribution(0.0, 1.0)
        return {
            "octaves": optuna.distributions.FloatDistribution(-5.0, -0.2),
            **{f"u{i}": unit for i in range(6)},
        }

    def chain(self, context: Any, flops_ratio: float) -> dict[str, float]:
        return {"octaves": math.log2(flops_ratio), **{f"u{i}": 0.5 for i in range(6)}}

    def propose(self, context: Any, params: Any) -> MadePlan:
        return MadePlan(params)


UNITS = 4


def final_loss(params: dict[str, float]) -> float:
    off = sum((value - 0.4) ** 2 for name, value in params.items() if name != "octaves")
    return 0.05 + 0.1 * 2.0 ** (-0.55 * params["octaves"]) + 0.4 * off


def noisy(plan: Any, number: int, report: Report) -> Measurement:
    """Learning speeds differ, and early rungs are noisier than late ones."""
    params = plan.params
    rng, ratio = np.random.default_rng([7, number]), 2.0 ** params["octaves"]
    rungs: list[tuple[int, dict[str, float]]] = []
    reason = None
    for rung in range(1, UNITS + 1):
        early = 1.0 / rung - 1.0 / UNITS
        loss = final_loss(params) + early * (0.3 + 0.14 * rng.normal()) + 0.01 * abs(rng.normal())
        rungs.append((rung, {"loss": loss, "accuracy": 1.0 - 0.2 * loss}))
        reason = report(rung, ratio, rungs[-1][1])
        if reason and rung < UNITS:
            break
        reason = None
    state: Any = "stopped" if reason else "completed"
    return Measurement(
        state, None, {"flops": ratio}, {"flops": ratio}, {}, tuple(rungs), reason or ""
    )


@dataclass
class Watched:
    """A rule that keeps what it stopped, with the peers of the same rung it was compared with."""

    rule: Stopping
    stopped: list[tuple[Standing, list[Standing]]]

    def __call__(self, mine: Standing, peers: Sequence[Standing], tally: Tally) -> str | None:
        reason = self.rule(mine, peers, tally)
        if reason and mine.rung < UNITS:
            self.stopped.append((mine, [peer for peer in peers if peer.rung == mine.rung]))
        return reason


@dataclass
class Spent:
    """What a study got for its first `units`: hypervolume, share of units on final-front members,
    completed share.
    """

    hypervolume: float
    on_front: float
    completed: float


def studied(rule: Stopping, seed: int, n_trials: int, units: int) -> Spent:
    study = optuna.create_study(directions=["maximize", "minimize"])
    space: Any = Made()
    context: Any = None
    enqueue_chain(study, space, [context], [0.7, 0.3, 0.1, 0.05])
    rules = Rules(
        Goals("accuracy", {"accuracy": 1.0}, ("flops",)),
        1.0,
        rule,
        Recipe("optuna.samplers.RandomSampler"),
        seed,
    )
    leases = Leases(study, 60.0)
    with leases.leading():
        run_trials(
            Trials(study, space, context, noisy, rules, leases, Exchange(study, Path())),
            n_trials,
            lambda _: None,
        )
    spent, points = 0, []
    for trial in study.get_trials(deepcopy=False):
        used = len(trial.user_attrs[RUNGS])
        if spent + used > units:
            break
        spent += used
        points.append(
            (final_loss(trial.params), trial.params["octaves"], used, trial.values is not None)
        )
    done = np.array([point[:3] for point in points if point[3]])
    front = moocore.is_nondominated(done[:, :2])
    volume = moocore.hypervolume(done[:, :2], ref=[1.5, 0.0])
    searched = [point[3] for point in points[4:]]
    return Spent(float(volume), float(done[front, 2].sum()) / spent, sum(searched) / len(searched))


SEEDS = range(8)


@pytest.fixture(scope="module")
def without() -> list[Spent]:
    """Studies that no rule stops."""
    return [studied(Never(), seed, 100, 400) for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Band(), Pareto()])
def test_whole_studies_gain_and_no_dominator_is_stopped(
    rule: Stopping, without: list[Spent]
) -> None:
    """At 400 units: 100 trials in full, or twice as many of which the worse are stopped."""
    watched = Watched(rule, [])
    with_rule = [studied(watched, seed, 260, 400) for seed in SEEDS]
    for found in with_rule:
        assert found.completed >= 0.15
    volumes = [np.mean([found.hypervolume for found in group]) for group in (without, with_rule)]
    assert (
        volumes[1] >= volumes[0]
    )  # spread of a mean of eight: 0.02; with 20 seeds the rules are 0.04 and 0.06 above
    shares = [np.mean([found.on_front for found in group]) for group in (without, with_rule)]
    assert shares[1] >= shares[0]
    assert len(watched.stopped) >= 100 * len(SEEDS)
    for mine, peers in watched.stopped:
        assert any(peer.flops_ratio < mine.flops_ratio or peer.loss < mine.loss for peer in peers)
