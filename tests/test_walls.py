"""Who may import whom, and how large a file may be."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for top in ("orchestrator", "lightning_modules") for path in (ROOT / top).rglob("*.py"))
LONGEST = 300
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "base"}


@cache
def imports(path: Path) -> list[str]:
    """Dotted names of all modules a file imports, at any depth."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; name the whole path"
            found.append(node.module or "")
    return found


def importers(*packages: str) -> list[str]:
    found = [path for path in SOURCES if any(name.split(".")[0] in packages for name in imports(path))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def importers_of(module: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in SOURCES if module in set(imports(path))]


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 20


def test_every_package_is_in_the_wheel() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in SOURCES}
    assert set(named) - {"orchestrator.conf"} == there


def test_hydra_stays_at_the_door() -> None:
    assert importers("hydra", "omegaconf") == ["orchestrator/__main__.py", "orchestrator/compose.py"]


def test_nothing_behind_the_door_composes() -> None:
    users = importers_of("orchestrator.compose")
    assert users == ["orchestrator/__main__.py"]


@pytest.mark.parametrize(
    ("package", "folder"), [("optuna", "orchestrator/search/"), ("mlflow", "orchestrator/tracking/")]
)
def test_a_large_dependency_stays_in_its_folder(package: str, folder: str) -> None:
    assert [path for path in importers(package) if not path.startswith(folder)] == []


def test_torch_pruning_stays_in_one_file() -> None:
    assert len(importers("torch_pruning")) <= 1


def test_the_torch_side_does_not_know_the_orchestrator() -> None:
    outer = importers("orchestrator", "optuna", "mlflow", "hydra", "omegaconf")
    assert [path for path in outer if path.startswith("lightning_modules/")] == []


def test_the_pruning_core_does_not_know_lightning() -> None:
    users = importers("pytorch_lightning", "lightning")
    assert [path for path in users if path.startswith("lightning_modules/pruning/")] == []


def test_every_file_is_short() -> None:
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}, "split these by concept"


def test_every_file_is_named_for_what_it_holds() -> None:
    assert [str(path) for path in SOURCES if FORBIDDEN_NAMES & {path.stem, *path.relative_to(ROOT).parts}] == []
