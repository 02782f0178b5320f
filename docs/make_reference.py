"""Writes docs/reference.md from the files of conf/: `python docs/make_reference.py`.

Every key stands there with its default and the comment beside or above it; every choice of a group
with its purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "reference.md"
INTRODUCTION = """# Reference

Every key of `conf/`, made from its files by `python docs/make_reference.py`. `--cfg job` prints the
values that a command would have. A value is overridden as `group.key=value`, a choice as
`group=choice`, and what a class of your own takes beyond these keys as `+group.key=value`.
"""
FIRST = ("job", "experiment", "model", "data", "task", "method", "space", "objectives", "phases")
"""Groups that people need first."""
LEFT_OUT = ("defaults", "hydra")
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w]*):(?: (?P<rest>.*))?$")


@dataclass(frozen=True)
class Key:
    """A key by its dotted path, with its value as it is written, and what its comment says."""

    path: str
    value: str
    meaning: str


@dataclass(frozen=True)
class ConfigFile:
    """The purpose of a file, its command, and its keys.

    `everywhere`: they are whole paths, not below the file's group.
    """

    name: str
    purpose: str
    command: str
    keys: Sequence[Key]
    everywhere: bool = False


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION, "## Top level\n", table(read(CONF / "config.yaml").keys)]
    parts.append("\nMethods and phases have these keys whichever of them is chosen:\n")
    for path in sorted((CONF / "defaults").glob("*.yaml")):
        parts.append(table(read(path).keys))
    for group in groups():
        parts.append(section(group))
    return "\n".join(parts).rstrip() + "\n"


def groups() -> list[str]:
    found = [path.name for path in CONF.iterdir() if path.is_dir() and path.name not in LEFT_OUT]
    return [*FIRST, *sorted(set(found) - set(FIRST))]


def section(group: str) -> str:
    """The choices of a group, then the keys of each that has some."""
    files = [read(path) for path in sorted((CONF / group).glob("*.yaml"))]
    sign = "+" if group == "experiment" else ""
    lines = [f"\n## {group}\n", "| choice | purpose |", "|---|---|"]
    lines += [f"| `{sign}{group}={file.name}` | {cell(file.purpose)} |" for file in files]
    text = "\n".join(lines) + "\n"
    if group in ("experiment", "method"):
        # files of values that the groups above explain
        return text
    for file in files:
        commented = [key for key in file.keys if key.meaning]
        prefix = "" if file.everywhere else group
        if commented:
            text += f"\n### {group}={file.name}\n\n{table(commented, prefix)}"
    return text


def table(keys: Sequence[Key], group: str = "") -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key in keys:
        path = key.path if not group or key.path.startswith(f"{group}.") else f"{group}.{key.path}"
        lines.append(f"| `{path}` | `{cell(key.value)}` | {cell(key.meaning)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|") or " "


def read(path: Path) -> ConfigFile:
    lines = path.read_text().splitlines()
    header = list(takewhile_comment(lines))
    told = " ".join([line.removeprefix("#").strip() for line in header])
    purpose = re.search(r"Purpose: (.*?)(?= Command:|$)", told)
    command = re.search(r"Command:(.*?)(?= Override:|$)", told)
    return ConfigFile(
        path.stem,
        purpose[1].strip() if purpose else "",
        command[1].strip() if command else "",
        list(keys_of(lines[len(header) :])),
        "@package _global_" in told,
    )


def takewhile_comment(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line


def keys_of(lines: Sequence[str]) -> Iterator[Key]:
    """The leaves, each with the comment behind it or above it."""
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.removeprefix("#").strip())
            continue
        match = KEY.match(line)
        if match is None:
            above = []
            continue
        indent = len(match["indent"])
        parents = [parent for parent in parents if parent[0] < indent]
        value, _, behind = (match["rest"] or "").partition("# ")
        names = [name for _, name in parents]
        path = ".".join([*names, match["key"]])
        if value.strip() and names[:1] != ["defaults"] and match["key"] != "defaults":
            yield Key(path, value.strip(), " ".join([*above, behind.strip()]).strip())
        if not value.strip():
            parents.append((indent, match["key"]))
        above = []


if __name__ == "__main__":
    main()
