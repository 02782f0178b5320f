"""A finished study from Python: frames, picture, models, and the choice of one."""

from __future__ import annotations

from pathlib import Path

import pytest

import orchestrator
from lightning_modules.errors import ConfigError
from tests.orchestrator.test_compare_job import study as stored


def test_a_study_is_its_tables(tmp_path: Path) -> None:
    study = orchestrator.open_study(stored(tmp_path / "mine"))
    assert (study.name, study.quality) == ("mine", "accuracy")
    assert list(study.front.index) == ["0", "1", "2", "3"]
    assert study.front.loc["1", "test_mean"] == study.view.rows.front[1].test_mean
    assert list(study.baselines.index[:2]) == ["dense", "uniform-0"]
    assert study.trials.loc[20, "state"] == "failed"
    assert study.summary["seconds"] == 10.0
    assert "<table" in study._repr_html_()


def test_the_picture_is_a_png_that_can_be_kept(tmp_path: Path) -> None:
    picture = orchestrator.open_study(stored(tmp_path / "mine")).plot()
    picture.save(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert picture._repr_png_() == picture.content


def test_a_model_is_selected_as_on_the_command_line(tmp_path: Path) -> None:
    study = orchestrator.open_study(stored(tmp_path / "mine"))
    row = orchestrator.select(study, "max_quality", max_flops_ratio=0.86)
    assert row.name == "2"
    with pytest.raises(ConfigError, match="got 'bset'"):
        orchestrator.select(study, "bset")
    with pytest.raises(ConfigError, match="the nearest is trial 3"):
        orchestrator.select(study, "max_quality", max_flops_ratio=0.1)


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    folder = stored(tmp_path / "mine")
    (folder / "models" / "3").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"has the models \['3'\]; got '4'"):
        orchestrator.open_study(folder).load(4)
    with pytest.raises(ConfigError, match=r"a finished study has groups\.json"):
        orchestrator.open_study(tmp_path)
