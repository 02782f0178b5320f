"""What is kept to be found again, damaged: it is named and made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.latency.timing import Spread
from orchestrator.search.confirmation.confirm import Candidate, confirm
from orchestrator.search.lab.kernels import choose_threads
from orchestrator.search.lab.latency_model import Estimation
from orchestrator.search.lab.sensitivity import profile
from orchestrator.search.space.allocation import Sensitivity
from orchestrator.stored import read_cache
from tests.faults.harm import DEEP, change
from tests.search.problems import Bench, settings_of


@pytest.mark.parametrize("content", ["", "{", "[]", '{"loss": [1]}', '{"a": 1}', DEEP, "null"])
def test_a_damaged_cache_is_named_and_made_anew(
    content: str, plan: tuple[Bench, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bench, folder = plan[0], plan[0].settings.study.baselines

    def profiled() -> Sensitivity:
        return profile(bench.lab, bench.methods[0].stages[0], folder, lambda *_: None)

    first = profiled()
    (path,) = folder.glob("sensitivity-*.json")
    path.write_text(content)
    capsys.readouterr()
    again = profiled()
    assert (again.loss == first.loss).all()
    assert f"{path} is damaged and is made anew" in capsys.readouterr().err
    profiled()
    assert capsys.readouterr().err == ""


def test_a_damaged_latency_model_is_fitted_anew(
    plan: tuple[Bench, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "orchestrator.latency.bench.Bench.__call__", lambda bench, model: Spread(1.0, 1.0, 1.0)
    )
    lab = plan[0].lab

    def made() -> Any:
        facts = lab.facts
        bench = facts.prices.bench
        return Estimation(
            facts.model, facts.structure, bench, "m", 1, tmp_path, lambda _: None
        ).made()

    first = made()
    (models,) = tmp_path.glob("latency-models-*.json")
    change(models, lambda d: {**d, "measured_ms": [-1.0] * 10**4})
    assert np.allclose(made().ms, first.ms)
    assert f"{models} is damaged and is made anew" in capsys.readouterr().err
    table = next(tmp_path.glob("latency-layer-*.json"))
    change(table, lambda d: {**d, "ms": [[-1.0]]})
    made()
    assert f"{table} is damaged and is made anew" in capsys.readouterr().err


def test_a_file_does_not_ask_for_a_million_threads(
    plan: tuple[Bench, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = plan[0]
    settings = settings_of(tmp_path, "threads=auto")
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)

    def chosen() -> None:
        choose_threads(
            settings, case.facts.structure, case.facts.model, case.data, torch.device("cpu")
        )

    chosen()
    (path,) = (tmp_path / "baselines").glob("threads-*.json")
    path.write_text('{"1000000": 0.1}')
    chosen()
    assert max(asked) < 10_000
    assert "is damaged and is made anew" in capsys.readouterr().err


def test_a_damaged_confirmation_is_confirmed_anew(
    plan: tuple[Bench, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab, final = plan[0].lab, plan[0].final
    candidate = Candidate("trial-0", lab.facts.model, lab.facts.structure.full(), "source")
    first, _ = confirm(final, candidate, tmp_path, lambda text: None)
    assert confirm(final, candidate, tmp_path, lambda text: None)[0] == first
    change(tmp_path / "trial-0.json", lambda d: d.update(best=17))
    assert confirm(final, candidate, tmp_path, lambda text: None)[0].test == first.test
    assert "trial-0.json is damaged and is made anew" in capsys.readouterr().err


def test_what_is_not_there_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_cache(tmp_path / "nothing.json", dict) is None
    assert capsys.readouterr().err == ""
