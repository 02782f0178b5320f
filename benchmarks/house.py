"""How the code is built, in numbers: `python benchmarks/house.py [FOLDER ...]`, each folder a
checkout.

Code lines are those that are neither empty, nor comment, nor docstring. Syntax nodes are those that
have a place in the text. Names that are defined twice are functions, classes and constants of a
module, without those that begin with an underscore.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PRODUCT = ("orchestrator", "lightning_modules")
LONGEST, MOST_PARAMETERS = 40, 6
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DEFAULT_GROUPS = (
    "defaults/method",
    "defaults/phases",
    "model/resnet_small",
    "data/digits",
    "task/classification",
    "space/allocation",
    "sampler/tpe",
    "stopping/band",
    "objectives/quality_flops",
    "phases/small",
    "tracking/mlflow",
    "job/search",
    "method/l2",
)


@dataclass(frozen=True)
class House:
    """The figures of one checkout."""

    product_lines: int
    test_lines: int
    leaf_keys: int
    long_functions: int
    wide_functions: int
    nodes_per_line: dict[str, float]
    comprehensions_per_1000_lines: float
    names_defined_twice: int


def house(root: Path) -> House:
    trees = {
        path: ast.parse(path.read_text())
        for room in PRODUCT
        for path in sorted((root / room).rglob("*.py"))
    }
    functions = [
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    lines = {path: code_lines(path) for path in trees}
    nodes = {
        path: sum(hasattr(node, "lineno") for node in ast.walk(tree))
        for path, tree in trees.items()
    }
    whole = sum(lines.values())
    comprehensions = sum(
        isinstance(node, COMPREHENSIONS) for tree in trees.values() for node in ast.walk(tree)
    )
    return House(
        product_lines=sum(len(path.read_text().splitlines()) for path in trees),
        test_lines=sum(
            len(path.read_text().splitlines()) for path in (root / "tests").rglob("*.py")
        ),
        leaf_keys=sum(1 for _ in leaves(composed(root / "conf"))),
        long_functions=sum(
            (node.end_lineno or 0) - node.lineno + 1 > LONGEST for node in functions
        ),
        wide_functions=sum(parameters(node) > MOST_PARAMETERS for node in functions),
        nodes_per_line={room: _per_line(root / room, nodes, lines) for room in PRODUCT},
        comprehensions_per_1000_lines=1000 * comprehensions / whole,
        names_defined_twice=sum(count > 1 for count in Counter(names(trees)).values()),
    )


def _per_line(room: Path, nodes: Mapping[Path, int], lines: Mapping[Path, int]) -> float:
    inside = [path for path in nodes if path.is_relative_to(room)]
    return sum(nodes[path] for path in inside) / max(1, sum(lines[path] for path in inside))


def code_lines(path: Path) -> int:
    """Lines with code on them; a docstring is none."""
    with path.open("rb") as stream:
        tokens = list(tokenize.tokenize(io.BytesIO(stream.read()).readline))
    empty = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
    )
    busy: set[int] = set()
    for place, token in enumerate(tokens):
        alone = token.type == tokenize.STRING and tokens[place + 1].type == tokenize.NEWLINE
        before = tokens[place - 1].type if place else tokenize.ENCODING
        if alone and before in (
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENCODING,
        ):
            continue
        if token.type not in (*empty, tokenize.ENDMARKER):
            busy.update(range(token.start[0], token.end[0] + 1))
    return len(busy)


def parameters(node: ast.FunctionDef) -> int:
    """Without `self` and `cls`."""
    named = [
        argument.arg
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    ]
    return len([name for name in named if name not in ("self", "cls")])


def names(trees: Mapping[Path, ast.Module]) -> Iterator[str]:
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield node.name
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    elements = target.elts if isinstance(target, ast.Tuple) else [target]
                    yield from (
                        e.id
                        for e in elements
                        if isinstance(e, ast.Name) and not e.id.startswith("_")
                    )


def composed(conf: Path) -> dict[str, Any]:
    """The default configuration, its files laid over one another as Hydra does."""
    tree: dict[str, Any] = {}
    for name in DEFAULT_GROUPS:
        content = yaml.safe_load((conf / f"{name}.yaml").read_text()) or {}
        content.pop("defaults", None)
        _lay(tree, content if name.startswith("defaults/") else {name.split("/")[0]: content})
    whole = yaml.safe_load((conf / "config.yaml").read_text())
    whole.pop("defaults")
    _lay(tree, whole)
    return tree


def _lay(tree: dict[str, Any], content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _lay(tree[key], value)
        else:
            tree[key] = value


def leaves(tree: Mapping[str, Any]) -> Iterator[Any]:
    for value in tree.values():
        if isinstance(value, dict) and value:
            yield from leaves(value)
        else:
            yield value


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "folders", nargs="*", type=Path, default=[Path(__file__).resolve().parent.parent]
    )
    for folder in arguments.parse_args().folders:
        print(folder)
        for name, value in vars(house(folder)).items():
            shown = (
                {room: round(number, 2) for room, number in value.items()}
                if isinstance(value, dict)
                else value
            )
            print(f"  {name}: {round(shown, 2) if isinstance(shown, float) else shown}")


if __name__ == "__main__":
    main()
