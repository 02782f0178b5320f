"""The stopping rule on fronts made by hand."""

from __future__ import annotations

import pytest

from lightning_modules.errors import ConfigError
from orchestrator.search.stopping import Band, Never, Standing

RULE = Band(octaves=0.5, keep=0.5, min_peers=3, max_drop=0.3)


def at(trial: int, flops_ratio: float, loss: float, rung: int = 1, drop: float = 0.0) -> Standing:
    return Standing(trial, rung, flops_ratio, loss, drop)


PEERS = [at(0, 0.30, 0.10), at(1, 0.28, 0.20), at(2, 0.26, 0.30), at(3, 0.25, 0.40)]


def test_the_worse_half_of_a_band_is_stopped_with_the_reason() -> None:
    reason = RULE(at(9, 0.27, 0.35), PEERS)
    assert reason is not None
    assert "3 of 4 trials within 0.5 octaves had a lower loss at rung 1" in reason


def test_the_better_half_goes_on() -> None:
    assert RULE(at(9, 0.27, 0.15), PEERS) is None


def test_what_dominates_its_band_is_never_stopped() -> None:
    # worse than most, but no trial of at most its FLOPs has a smaller loss
    assert RULE(at(9, 0.24, 0.39), [*PEERS, at(4, 0.29, 0.05)]) is None


def test_only_the_same_rung_and_about_the_same_cost_compare() -> None:
    far = [at(i, 0.05, 0.01) for i in range(5)]
    later = [at(i, 0.27, 0.01, rung=2) for i in range(5)]
    assert RULE(at(9, 0.27, 9.0), [*far, *later]) is None


def test_few_peers_decide_nothing() -> None:
    assert RULE(at(9, 0.27, 9.0), PEERS[:2]) is None


def test_the_quality_floor_holds_for_the_cheapest_too() -> None:
    reason = RULE(at(9, 0.001, 0.0, drop=0.31), [])
    assert reason is not None
    assert "more than 0.3" in reason


def test_about_half_of_random_trials_go_on() -> None:
    losses = [((7919 * i) % 1000) / 1000 for i in range(200)]
    peers: list[Standing] = []
    gone_on = 0
    for trial, loss in enumerate(losses):
        mine = at(trial, 0.25 + 0.0001 * ((31 * trial) % 100), loss)
        gone_on += RULE(mine, peers) is None
        peers.append(mine)
    assert 0.4 <= gone_on / len(losses) <= 0.65


def test_never_never_stops() -> None:
    assert Never()(at(9, 0.27, 9.0, drop=1.0), PEERS) is None


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stopping.keep must be a share in \(0, 1\]; got 0"):
        Band(keep=0.0)
