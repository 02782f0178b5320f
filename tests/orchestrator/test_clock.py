"""Each second is counted once."""

import pytest

from orchestrator.clock import PhaseClock, orchestration_share


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_inner_phases_are_taken_out_of_outer_ones() -> None:
    hand = Hand()
    clock = PhaseClock(hand)
    hand.time += 5  # belongs to nobody
    with clock.timed("search"):
        hand.time += 1
        with clock.timed("finetune"):
            hand.time += 10
            with clock.timed("evaluation"):
                hand.time += 2
        hand.time += 3
        with clock.timed("finetune"):
            hand.time += 20
    hand.time += 7
    assert clock.seconds == {"search": 4.0, "finetune": 30.0, "evaluation": 2.0}


def test_a_phase_inside_itself_is_counted_once() -> None:
    hand = Hand()
    clock = PhaseClock(hand)
    with clock.timed("a"):
        hand.time += 1
        with clock.timed("a"):
            hand.time += 1
    assert clock.seconds == {"a": 2.0}


def test_a_phase_that_raises_is_charged_and_closed() -> None:
    hand = Hand()
    clock = PhaseClock(hand)

    def fail() -> None:
        with clock.timed("a"):
            hand.time += 1
            raise KeyError

    with clock.timed("b"):
        with pytest.raises(KeyError):
            fail()
        hand.time += 2
    assert clock.seconds == {"a": 1.0, "b": 2.0}


def test_orchestration_is_what_is_left_of_the_whole() -> None:
    seconds = {"dense training": 10.0, "finetune": 70.0, "evaluation": 15.0, "logging": 3.0}
    assert orchestration_share(seconds, 100.0) == pytest.approx(0.05)
    assert orchestration_share({}, 10.0) == 1.0
    assert orchestration_share({"finetune": 10.0000001}, 10.0) == 0.0
    with pytest.raises(ValueError, match="must be above 0 seconds; got 0"):
        orchestration_share(seconds, 0.0)
