"""A picture comes out of whatever a study holds."""

import dataclasses
import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from orchestrator.report.picture import pareto
from orchestrator.results.rows import ConfirmedRow, Rows, TrialRow


def trial(number: int, state: str, quality: float | None, ratio: float | None) -> TrialRow:
    ratios = {} if ratio is None else {"flops": ratio}
    return TrialRow(
        number, state, 1, None, quality, 1.0, None, "", "", costs={"flops": 1.0}, ratios=ratios
    )


def confirmed(
    origin: str, place: int | None, mean: float, std: float, ratio: float
) -> ConfirmedRow:
    return ConfirmedRow(
        origin, place, mean, std, 2, costs={"flops": 1e9 * ratio}, ratios={"flops": ratio}
    )


FRONT = [confirmed("front", n, 0.9 + 0.01 * n, 0.01, n / 10) for n in (1, 3, 7)]
DENSE = confirmed("dense", None, 0.985, 0.0, 1.0)
TRIALS = [
    trial(0, "completed", 0.95, 0.5),
    trial(1, "stopped", 0.10, 0.004),
    trial(2, "rejected", None, 0.9),
    trial(3, "failed", math.nan, None),
]
BASELINES = [confirmed("random", 3, 0.4, 0.2, 0.3)]


@pytest.mark.parametrize(
    ("trials", "front", "baselines", "dense"),
    [
        (TRIALS, FRONT, BASELINES, DENSE),
        (TRIALS, [], [], None),
        ([], FRONT[:1], [], None),
        ([], [], BASELINES, DENSE),
        ([], [], [], None),
        ([], [dataclasses.replace(row, test_mean=0.0, test_std=0.0) for row in FRONT], [], None),
    ],
)
def test_every_combination_gives_a_png(
    tmp_path: Path,
    trials: list[TrialRow],
    front: list[ConfirmedRow],
    baselines: list[ConfirmedRow],
    dense: ConfirmedRow | None,
) -> None:
    path = tmp_path / "pareto.png"
    pareto(path, Rows(trials, front, baselines, dense), quality="accuracy", title="a study")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    pareto(path, Rows(trials, front, baselines, dense), quality="accuracy", title="a study")
    assert path.read_bytes() == content


def test_a_quality_that_is_to_be_small_has_its_good_models_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With errors in place of accuracies the picture shows the same heights, under falling
    labels.
    """
    limits, original = [], Axes.set_ylim

    def noted(axes: Axes, *bounds: float, **rest: object) -> object:
        if len(bounds) == 2:
            limits.append(bounds)
        return original(axes, *bounds, **rest)

    monkeypatch.setattr(Axes, "set_ylim", noted)
    flipped = [dataclasses.replace(row, test_mean=-row.test_mean) for row in FRONT]
    pareto(tmp_path / "up.png", Rows(front=FRONT), quality="accuracy", title="a study")
    down = Rows(front=flipped)
    pareto(tmp_path / "down.png", down, quality="error", title="a study", sign=-1.0)
    assert limits[0] == pytest.approx(limits[1])
