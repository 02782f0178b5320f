"""Who can reach test data: the confirmation, and nobody before it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.lab.lab import Lab, SearchData
from tests.search.problems import Prepared, bench


def test_a_search_reaches_no_test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    data = Prepared(tmp_path, "made_up={}").data
    whole = type(data).test_dataloader

    def noted(self: Any) -> Any:
        asked.append("test")
        return whole(self)

    monkeypatch.setattr(type(data), "test_dataloader", noted)
    here = bench(tmp_path, tmp_path / "runs", "made_up={}")
    for number, ratio in enumerate((0.6, 0.3)):
        measured, _ = here.run(here.propose(ratio), number)
        assert measured.state == "completed"
    assert asked == []
    assert not hasattr(Lab, "test")
    assert [field.name for field in fields(SearchData)] == ["train_batches", "validation"]
    here.final.test(here.facts.model)
    assert asked == ["test"]
