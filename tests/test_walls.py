"""Who may import whom, and how large a file and a function may be."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for top in ("orchestrator", "lightning_modules") for path in (ROOT / top).rglob("*.py")
)
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 450, 40, 6
WIDE = {
    "lightning_modules/data/arrays.py fashion_mnist",
    "lightning_modules/data/folder.py __init__",
    "lightning_modules/models/sequences.py __init__",
    "lightning_modules/models/texts.py __init__",
    "lightning_modules/phases/fit.py fit",
    "lightning_modules/pruning/attention.py forward",
    "lightning_modules/pruning/criteria/linear_flow.py _attention",
    "lightning_modules/pruning/criteria/linear_flow.py _batch_norm",
}
"""Functions with a signature that others call by: torch's, and constructors that `conf/` names."""
INSIDE_OPTUNA = re.compile(
    r"\._(storage|trial_id|study_id|contains|suggest|thread_local|is_fixed_param|is_relative_param)\b"
    r"|system_attrs|optuna\._"
)
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
    found = [
        path for path in SOURCES if any(name.split(".")[0] in packages for name in imports(path))
    ]
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
    assert importers("hydra", "omegaconf") == [
        "orchestrator/__main__.py",
        "orchestrator/compose.py",
    ]


def test_nothing_behind_the_door_composes() -> None:
    users = importers_of("orchestrator.compose")
    assert users == ["orchestrator/__main__.py"]


@pytest.mark.parametrize(
    ("package", "folder"),
    [("optuna", "orchestrator/search/"), ("mlflow", "orchestrator/tracking/")],
)
def test_a_large_dependency_stays_in_its_folder(package: str, folder: str) -> None:
    assert [path for path in importers(package) if not path.startswith(folder)] == []


def test_what_optuna_keeps_private_is_used_in_one_file() -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if INSIDE_OPTUNA.search(path.read_text(encoding="utf-8"))
    ]
    assert users == ["orchestrator/search/studies/optuna_inside.py"]


def test_torch_pruning_stays_in_one_file() -> None:
    assert len(importers("torch_pruning")) <= 1


def test_the_torch_side_does_not_know_the_orchestrator() -> None:
    outer = importers("orchestrator", "optuna", "mlflow", "hydra", "omegaconf")
    assert [path for path in outer if path.startswith("lightning_modules/")] == []


def test_the_pruning_core_does_not_know_lightning() -> None:
    users = importers("pytorch_lightning", "lightning")
    assert [path for path in users if path.startswith("lightning_modules/pruning/")] == []


def functions() -> list[tuple[str, ast.FunctionDef]]:
    """Every function under the name that the lists above have for it."""
    return [
        (f"{path.relative_to(ROOT).as_posix()} {node.name}", node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]


def parameters(node: ast.FunctionDef) -> list[str]:
    named = [
        argument.arg
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    ]
    return [name for name in named if name not in ("self", "cls")]


def test_every_file_fits_on_few_screens() -> None:
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE} == {}, (
        "split these by concept"
    )


def test_every_function_fits_on_a_screen() -> None:
    long = {
        name
        for name, node in functions()
        if (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == set()


def test_every_function_takes_few_parameters() -> None:
    assert {name for name, node in functions() if len(parameters(node)) > MOST_PARAMETERS} == WIDE


ORDER = (
    "settings",
    "results",
    "export",
    "latency",
    "search",
    "report",
    "tracking",
    "workers",
    "jobs",
)
"""Rooms from the ground up; each may import those below it."""
DOWNHILL = {
    "orchestrator/search/__init__.py": "the package can be called as the job",
    "orchestrator/export/__init__.py": "the package can be called as the job",
    "orchestrator/report/__init__.py": "the package can be called as the job",
}


def test_no_room_imports_one_above_it() -> None:
    upward = []
    for path in SOURCES:
        parts = path.relative_to(ROOT).parts
        if (
            parts[0] != "orchestrator"
            or parts[1] not in ORDER
            or path.relative_to(ROOT).as_posix() in DOWNHILL
        ):
            continue
        above = {f"orchestrator.{room}" for room in ORDER[ORDER.index(parts[1]) + 1 :]}
        upward += [
            (str(path), name) for name in imports(path) if ".".join(name.split(".")[:2]) in above
        ]
    assert upward == []


def test_every_file_is_named_for_what_it_holds() -> None:
    assert [
        str(path)
        for path in SOURCES
        if FORBIDDEN_NAMES & {path.stem, *path.relative_to(ROOT).parts}
    ] == []
