"""Threads by measurement: set once, kept with the baselines, the fastest of what was tried."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules.errors import ConfigError
from orchestrator.search import prepare
from orchestrator.search.threads import choose_threads
from tests.search.problems import problem_of


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def chosen(problem, value: object) -> str:  # type: ignore[no-untyped-def]
    settings = problem.settings.model_copy(update={"threads": value})
    return choose_threads(settings, problem.structure, problem.model, problem.data, torch.device("cpu"))


def test_auto_takes_the_fastest_and_keeps_what_it_measured(tmp_path: Path) -> None:
    problem = problem_of(tmp_path)
    said = chosen(problem, "auto")
    (path,) = problem.settings.study.baselines.glob("threads-*.json")
    measured = json.loads(path.read_text())
    assert set(measured) == {str(2**p) for p in range((os.cpu_count() or 1).bit_length())}
    fastest = min(measured, key=measured.get)
    assert torch.get_num_threads() == int(fastest)
    assert said.startswith(f"{fastest} of ")
    path.write_text(json.dumps({"1": 2.0, "2": 1.0}))
    chosen(problem, "auto")
    assert torch.get_num_threads() == 2  # what was measured once is not measured again


def test_a_number_is_set_before_the_structure_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    looked_for = prepare.find_structure

    def find_structure(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return looked_for(*arguments)

    monkeypatch.setattr(prepare, "find_structure", find_structure)
    torch.set_num_threads(2)
    problem_of(tmp_path, "threads=1")
    assert seen == [1]


def test_only_auto_measures(tmp_path: Path) -> None:
    problem = problem_of(tmp_path)
    torch.set_num_threads(2)
    assert chosen(problem, None) == chosen(problem, 1) == ""
    assert torch.get_num_threads() == 2
    assert not list(problem.settings.study.baselines.glob("threads-*.json"))


def test_anything_else_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads"):
        problem_of(tmp_path, "threads=some")
