"""What all tests share: no time limit, and one copy of what never changes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.cheap import make_cheap

settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every worker of this run sees."""
    mine = tmp_path_factory.getbasetemp()
    return mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine


@pytest.fixture(autouse=True, scope="session")
def _tests_are_cheap(shared: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_cheap(patch, shared)
        yield


@pytest.fixture(autouse=True, scope="session")
def _modules_are_no_garbage(_tests_are_cheap: None) -> Iterator[None]:
    """Garbage collection looks at what tests made: all that was imported takes it a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
