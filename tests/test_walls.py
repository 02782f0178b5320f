"""Who may import whom, and how large a file and a function may be."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for top in ("orchestrator", "lightning_modules") for path in (ROOT / top).rglob("*.py")
)
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 450, 40, 6
LONG = {
    "orchestrator/compose.py load_settings",
    "orchestrator/jobs/explore.py explore",
    "orchestrator/jobs/outputs.py show",
    "orchestrator/jobs/replay.py replay",
    "orchestrator/jobs/search.py _search",
    "orchestrator/report/picture.py pareto",
    "orchestrator/report/tables.py front_table",
    "orchestrator/search/confirmation/final.py confirm_front",
    "orchestrator/search/lab/dense.py _make",
    "orchestrator/search/lab/kernels.py choose_memory_format",
    "orchestrator/search/lab/prepare.py prepare",
    "orchestrator/search/pace/pacing.py pacing_of",
    "orchestrator/search/studies/study.py run_trial",
    "orchestrator/search/studies/warm_start.py take_over",
    "orchestrator/search/studies/warm_start.py filled",
    "orchestrator/search/trials/evaluate.py _tried",
    "orchestrator/search/trials/evaluate.py _finish",
    "orchestrator/search/trials/methods.py check_method",
    "orchestrator/settings/method.py _conflicts",
}
"""Functions that are too long as yet; the list only shrinks."""
WIDE = {
    "orchestrator/report/picture.py pareto",
    "orchestrator/search/confirmation/final.py _export",
    "orchestrator/search/confirmation/final.py _ladder",
    "orchestrator/search/lab/dense.py _make",
    "orchestrator/search/lab/dense.py train_dense",
    "orchestrator/search/pace/budget.py __init__",
    "orchestrator/search/space/allocation.py allocate",
    "orchestrator/search/trials/measured.py measurement",
    "orchestrator/search/trials/run_plan.py run_plan",
    "orchestrator/tracking/__init__.py trial",
    "orchestrator/tracking/mlflow.py trial",
    "orchestrator/tracking/none.py trial",
    "orchestrator/tracking/spooled.py trial",
    "lightning_modules/data/arrays.py fashion_mnist",
    "lightning_modules/data/folder.py __init__",
    "lightning_modules/models/sequences.py __init__",
    "lightning_modules/phases/fit.py fit",
    "lightning_modules/pruning/attention.py forward",
    "lightning_modules/pruning/criteria/linear_flow.py _attention",
    "lightning_modules/pruning/criteria/linear_flow.py _batch_norm",
}
"""Functions that take too much as yet, or have torch's own signature; the list only shrinks."""
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
    assert long == LONG


def test_every_function_takes_few_parameters() -> None:
    assert {name for name, node in functions() if len(parameters(node)) > MOST_PARAMETERS} == WIDE


ORDER = ("settings", "results", "search", "report", "tracking", "workers", "jobs")
"""Rooms from the ground up; each may import those below it."""
DOWNHILL = {
    "orchestrator/search/__init__.py": "the package can be called as the job",
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
