"""What costs a test time and shows it nothing, made cheap in the process that asks for it."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

SHARED: list[Path] = []
"""The folder of all workers of this run, once it is known."""


def make_cheap(patch: pytest.MonkeyPatch, shared: Path) -> None:
    """All of this, until the patch is undone. `shared` is a folder of all workers of a run."""
    SHARED[:] = [shared]
    _no_power_fails(patch)
    _a_configuration_file_is_parsed_once(patch)
    _structures_are_discovered_once(patch, shared / "structures")
    _mlflow_makes_its_schema_once(patch, shared / "mlflow.db")
    _a_latency_is_a_few_passes(patch)


def _no_power_fails(patch: pytest.MonkeyPatch) -> None:
    """So nobody waits for the disk: a study is on it after hundreds of waits."""
    patch.setattr(os, "fsync", lambda descriptor: None)


_KNOWN = dict[str, Any]()
"""Configuration files by their content."""


def _a_configuration_file_is_parsed_once(patch: pytest.MonkeyPatch) -> None:
    """By its content: each composition reads some twenty of them."""
    load = OmegaConf.load

    def remembered(source: Any) -> Any:
        if not hasattr(source, "read"):
            return load(source)
        content = source.read()
        if content not in _KNOWN:
            source.seek(0)
            _KNOWN[content] = load(source)
        return copy.deepcopy(_KNOWN[content])

    patch.setattr(OmegaConf, "load", staticmethod(remembered))


def _structures_are_discovered_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Those that tests ask for, and those of the project's own models that a search prepares."""
    from orchestrator.search.lab import prepare
    from tests.structures import as_before, share

    share(folder)
    patch.setattr(prepare, "discover", as_before)


def _mlflow_makes_its_schema_once(patch: pytest.MonkeyPatch, first: Path) -> None:
    """A new database is a copy of the first one, which was made as every other would be."""
    from orchestrator.tracking import database

    put = database._put

    def copied(place: Path, *, replace: bool) -> None:
        if replace or not first.exists():
            put(place, replace=replace)
        source, target = (first, place) if first.exists() else (place, first)
        if not target.exists():
            part = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copy(source, part)
            part.rename(target)

    patch.setattr(database, "_put", copied)


def _a_latency_is_a_few_passes(patch: pytest.MonkeyPatch) -> None:
    """It says less of the spread, which is for `tests/orchestrator/test_latency.py`."""
    from orchestrator.latency import bench, timing

    patch.setattr(bench, "timed_in_turn", lambda runs, seconds=0.0: timing.timed_in_turn(runs, 0.0))
