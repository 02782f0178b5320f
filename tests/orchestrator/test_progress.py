"""Plain lines where there is no terminal, a live display where there is one."""

import io
import re

import pytest

from orchestrator.display import Goal, front_lines
from orchestrator.progress import Progress
from orchestrator.report.tables import front_table, show, show_front, summary_table
from orchestrator.results.quantities import count, duration, flops, percent
from orchestrator.results.rows import ConfirmedRow, Rows, TrialRow


def confirmed(
    origin: str, trial: int | None, mean: float, std: float, flops: float, ratio: float
) -> ConfirmedRow:
    """A confirmed model; half of the parameters, 1 ms."""
    costs = {"flops": flops, "params": 100.0, "latency_ms": 1.0}
    return ConfirmedRow(
        origin, trial, mean, std, 2, costs=costs, ratios={"flops": ratio, "params": 0.5}
    )


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


ROW = TrialRow(
    3,
    "stopped",
    1,
    2,
    0.91234,
    12.0,
    0.3,
    "sampler",
    "below the rung",
    costs={"flops": 10},
    ratios={"flops": 0.25},
)


def test_plain_output_is_one_line_per_event_without_control_codes() -> None:
    stream, hand = io.StringIO(), Hand()
    with Progress(stream, now=hand) as progress:
        progress.phase("chain", "8 targets")
        progress.eta(90)
        for step in range(100):
            progress.tick(f"step {step}")
            hand.time += 0.125
        progress.trial(ROW, [ROW], 1, 24)
        progress.phase("confirm")
    assert stream.getvalue().splitlines() == [
        "[0 s] chain: 8 targets",
        "  step 0",
        "  step 40",
        "  step 80",
        "trial 3 stopped, below the rung, quality 0.9123, 25.0 % of the FLOPs, from trial 2, 12 s, "
        "1/24 done, "
        "front of 1, about 1 min 18 s left",
        "[12 s] confirm, about 1 min 18 s left",
    ]


def test_a_log_does_not_say_the_same_again_and_again() -> None:
    stream, hand = io.StringIO(), Hand()
    with Progress(stream, now=hand) as progress:
        for text in ("waits", "waits", "works", "waits"):
            progress.tick(text)
            hand.time += 60.0
        progress.phase("next")
        progress.tick("waits")
    assert stream.getvalue().splitlines() == [
        "  waits",
        "  works",
        "  waits",
        "[4 min 00 s] next",
        "  waits",
    ]


def test_a_terminal_sees_phase_count_front_and_time_left() -> None:
    stream, hand = io.StringIO(), Hand()
    front = [
        TrialRow(
            n,
            "completed",
            1,
            None,
            0.5,
            1.0,
            None,
            "",
            "",
            costs={"flops": 1},
            ratios={"flops": n / 20},
        )
        for n in range(1, 21)
    ]
    with Progress(stream, terminal=True, now=hand) as progress:
        progress.eta(60)
        progress.trial(ROW, front, 4, 24)
        progress.phase("search")
        progress.tick("step [3]")
    text = stream.getvalue()
    for part in (
        "search",
        "4/24 trials",
        "validation front so far",
        "100.0 %",
        "5.0 %",
        "1 min 00 s left",
        "step [3]",
    ):
        assert part in text


def test_a_run_that_takes_longer_does_not_say_that_nothing_is_left() -> None:
    stream, hand = io.StringIO(), Hand()
    progress = Progress(stream, now=hand)
    progress.eta(10)
    hand.time += 20
    progress.phase("confirm")
    assert stream.getvalue() == "[20 s] confirm, longer than expected\n"


def test_a_quiet_run_says_nothing() -> None:
    stream = io.StringIO()
    for terminal in (True, False):
        with Progress(stream, terminal=terminal, quiet=True) as progress:
            progress.phase("search")
            progress.tick("step")
            progress.trial(ROW, [ROW], 1, 24)
    assert stream.getvalue() == ""


def test_a_terminal_sees_each_worker_with_its_trial_round_and_phase() -> None:
    stream = io.StringIO()
    states = [f"worker {index}: trial {index}, round 2, finetune" for index in range(12)]
    with Progress(stream, terminal=True) as progress:
        progress.phase("search", "24 trials")
        progress.workers(states)
    text = stream.getvalue()
    assert "worker 7: trial 7, round 2, finetune" in text
    assert "worker 8" not in text
    assert "and 4 more" in text


def test_the_innermost_phase_is_told_as_it_changes() -> None:
    told: list[str] = []
    progress = Progress(io.StringIO(), told=told.append)
    with progress.timed("outer"), progress.timed("inner"):
        pass
    assert told == ["outer", "inner", "outer", ""]


def row(number: int, ratio: float, quality: float) -> TrialRow:
    return TrialRow(
        number, "completed", 1, None, quality, 1.0, None, "", "", ratios={"flops": ratio}
    )


def test_the_front_is_drawn_over_the_logarithm_of_its_cost_in_twelve_plain_lines() -> None:
    front = [row(1, 0.04, 0.80), row(2, 0.2, 0.95), row(3, 1.0, 0.98)]
    lines = front_lines(front, [*front, row(4, 0.9, 0.85)], Goal())
    assert len(lines) <= 12
    assert "\n".join(lines).isascii()
    assert max(map(len, lines)) <= 79
    plot = [line.partition("|")[2] for line in lines if "|" in line]
    columns = sorted([line.index("o") for line in plot if "o" in line])
    # 4, 20 and 100 % are equal steps
    assert columns == [0, 30, 59]
    assert sum(line.count(".") for line in plot) == 1
    assert lines[-2].split() == ["4.0", "%", "20.0", "%", "100.0", "%"]
    assert lines[-1] == "best up to 50.0 % of the FLOPs: trial 2, quality 0.9500 at 20.0 %"


def test_one_trial_alone_and_none_are_drawn_too() -> None:
    assert front_lines([], [], Goal()) == []
    lines = front_lines([row(1, 0.7, 0.9)], [], Goal())
    assert sum(line.count("o") for line in lines if "|" in line) == 1
    assert lines[-1] == "no model at or under 50.0 % of the FLOPs yet"


def test_a_small_quality_is_the_best_where_it_is_minimised() -> None:
    front = [row(1, 0.1, 3.0), row(2, 0.4, 2.0), row(3, 0.9, 1.0)]
    assert "trial 2" in front_lines(front, [], Goal(sign=-1.0))[-1]
    assert "trial 3" in front_lines(front, [], Goal(most=0.95, sign=-1.0))[-1]


def test_seconds_per_phase_come_with_it() -> None:
    hand = Hand()
    progress = Progress(io.StringIO(), now=hand)
    with progress.timed("finetune"):
        hand.time += 3
    assert progress.seconds == {"finetune": 3.0}


def test_tables_show_each_model_beside_its_baselines() -> None:
    front = [confirmed("front", 3, 0.9, 0.01, 2_610_000_000, 0.25)]
    dense = confirmed("dense", None, 0.95, 0.0, 10_440_000_000, 1.0)
    baselines = [confirmed("uniform", 3, 0.88, 0.02, 2_600_000_000, 0.249)]
    stream = io.StringIO()
    show(front_table(Rows((), front, baselines, dense), "accuracy"), stream)
    show(summary_table("Summary", [("orchestration", percent(0.031))]), stream)
    lines = stream.getvalue().splitlines()
    assert any(
        all(
            part in line
            for part in (
                "  3 |",
                "2.61 G",
                "25.0 %",
                "0.9000 ± 0.0100",
                "-0.0500",
                "0.8800 ± 0.0200",
            )
        )
        for line in lines
    )
    assert any("dense" in line and "10.4 G" in line for line in lines)
    assert "| orchestration | 3.1 % |" in lines
    assert "\x1b" not in stream.getvalue()


class Terminal(io.StringIO):
    """A terminal; its width is that of $COLUMNS."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(80, "faster, ms, global, random"), (100, "faster, ms, global"), (130, "")],
)
def test_the_last_table_fits_the_terminal(
    width: int, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    names = ("uniform", "random", "global")
    front = [confirmed("front", 15, 0.9, 0.01, 2_610_000_000, 0.25)]
    baselines = [confirmed(name, 15, 0.88, 0.02, 2_600_000_000, 0.249) for name in names]
    dense = confirmed("dense", None, 0.95, 0.0, 10_440_000_000, 1.0)
    show_front(Rows((), [*front, *baselines[:1]], baselines, dense), "accuracy")
    said = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    lines = said.splitlines()
    assert max(map(len, lines)) <= width
    # nothing is wrapped: title, headers, a line for each of the three models, what is left out
    assert len([line for line in lines if line.strip(" ─")]) == 5 + bool(left_out)
    for part in ("0.9000 ± 0.0100", "-0.0500", "0.8800 ± 0.0200", "25.0 %"):
        assert part in said
    assert (f"left out for the width: {left_out}" in said) == bool(left_out)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (flops(2_610_000_000), "2.61 GFLOPs"),
        (flops(999_900_000), "1000 MFLOPs"),
        (count(950), "950"),
        (count(23_508_032), "23.5 M"),
        (percent(0.0512), "5.1 %"),
        (duration(8.2), "8 s"),
        (duration(95), "1 min 35 s"),
        (duration(4000), "1 h 06 min"),
        (duration(-1), "0 s"),
    ],
)
def test_quantities(shown: str, expected: str) -> None:
    assert shown == expected
