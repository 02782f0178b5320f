"""What all tests share: no time limit, and one copy of what never changes."""

from __future__ import annotations

import copy
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from omegaconf import OmegaConf

settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("tests")


def _of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """A folder that every worker of this run sees."""
    mine = factory.getbasetemp()
    return mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine


@pytest.fixture(autouse=True, scope="session")
def _structures_are_discovered_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Those that tests ask for, and those of the project's own models that a search prepares."""
    from orchestrator.search.lab import prepare
    from tests.structures import as_before, share

    share(_of_all_workers(tmp_path_factory) / "structures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "discover", as_before)
        yield


@pytest.fixture(autouse=True, scope="session")
def _modules_are_no_garbage(_structures_are_discovered_once: None) -> Iterator[None]:
    """Garbage collection looks at what tests made: all that was imported takes it a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _no_power_fails() -> Iterator[None]:
    """So nobody waits for the disk: a study is on it after hundreds of waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _a_configuration_file_is_parsed_once() -> Iterator[None]:
    """By its content: each composition reads some twenty of them."""
    load, known = OmegaConf.load, dict[str, Any]()

    def remembered(source: Any) -> Any:
        if not hasattr(source, "read"):
            return load(source)
        content = source.read()
        if content not in known:
            source.seek(0)
            known[content] = load(source)
        return copy.deepcopy(known[content])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(remembered))
        yield


@pytest.fixture(autouse=True, scope="session")
def _mlflow_makes_its_schema_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A new database is a copy of the first one, which was made as every other would be."""
    from orchestrator.tracking import database

    put, first = database._put, _of_all_workers(tmp_path_factory) / "mlflow.db"

    def copied(place: Path, *, replace: bool) -> None:
        if replace or not first.exists():
            put(place, replace=replace)
        source, target = (first, place) if first.exists() else (place, first)
        if not target.exists():
            part = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copy(source, part)
            part.rename(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_put", copied)
        yield
