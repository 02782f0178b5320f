"""What all tests share: no time limit that a busy machine could miss, and each structure discovered once."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def _structures_are_discovered_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.structures import share

    mine = tmp_path_factory.getbasetemp()
    share((mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "structures")
