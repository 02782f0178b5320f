"""TensorBoard and several records at once: what is written stands there once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lightning_modules.errors import ConfigError
from orchestrator.tracking import ModelRecord, Point, StudyResults, TrialRecord
from orchestrator.tracking.several import SeveralTrackers
from orchestrator.tracking.tensorboard import TensorBoardTracker

pytest.importorskip("tensorboard")

TRIAL = TrialRecord(
    3,
    "completed",
    {"target_flops_ratio": 0.25, "rounds": 2},
    {"method": "l1"},
    {"quality": 0.9, "loss": math.nan},
    [Point("quality", 1, 0.8), Point("quality", 2, 0.9)],
)
RESULTS = StudyResults(
    {"hypervolume": 0.4},
    models=[ModelRecord("3", "trial 3", {"on_front": "true"}, {}, {"test_accuracy": 0.88})],
    table={"model": ["trial 3"], "test": [0.88]},
)


def recorded(folder: Path, name: str = "small", identity: str = "one") -> TensorBoardTracker:
    tracker = TensorBoardTracker(str(folder))
    tracker.open_study(name, {"study_id": identity}, {})
    tracker.trial(TRIAL)
    tracker.close_study(RESULTS)
    return tracker


def scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


@pytest.mark.slow
def test_a_trial_has_its_curve_and_its_results(tmp_path: Path) -> None:
    tracker = recorded(tmp_path)
    curves = scalars(tmp_path / "small" / "003")
    assert curves["quality"][:2] == pytest.approx([0.8, 0.9])
    assert "loss" not in curves
    tested = scalars(tmp_path / "small" / "3-tested")
    assert tested["test_accuracy"] == pytest.approx([0.88])
    assert scalars(tmp_path / "small" / "results-1")["hypervolume"] == pytest.approx([0.4])
    assert tracker.seconds > 0.0


@pytest.mark.slow
def test_what_is_recorded_is_not_written_again(tmp_path: Path) -> None:
    recorded(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("events.*")}
    recorded(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("events.*")} == before
    recorded(tmp_path, identity="two")
    assert (tmp_path / "small-two" / "003").is_dir()


@pytest.mark.slow
def test_several_record_the_same(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    several = SeveralTrackers([TensorBoardTracker(str(folder)) for folder in folders])
    several.open_study("small", {"study_id": "one"}, {})
    several.trial(TRIAL)
    several.close_study(RESULTS)
    first, second = [scalars(folder / "small" / "003") for folder in folders]
    assert first == second
    assert several.seconds > 0.0


def test_no_record_at_all_is_told() -> None:
    with pytest.raises(ConfigError, match="take tracking=none"):
        SeveralTrackers([])
