"""The help fits a window, and bash completes keys and choices."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.__main__ import main
from orchestrator.shell import WIDTH, fitted_help

COMPLETE = """
python() {{ {python} "$@"; }}
eval "$(python -m orchestrator -sc install=bash)"
COMP_LINE="{line}" COMP_POINT=${{#COMP_LINE}} COMP_WORDS=({python})
_orchestrator_python
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(line: str) -> list[str]:
    """What bash offers for a line at its end."""
    # set before the line, so that its length is known
    script = COMPLETE.format(python=sys.executable, line=line).replace('" COMP_', '"\nCOMP_')
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_help_says_first_what_people_need_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= WIDTH
    head, _, groups = said.partition("\nGroups: ")
    assert len(head.splitlines()) <= 45
    for key in (
        "+experiment=",
        "model=",
        "data=",
        "task=",
        "method=",
        "objectives=",
        "objectives.bounds=",
        "study.n_trials=",
        "study.budget=",
        "workers=",
        "job=",
        "tracking=",
        "install=bash",
    ):
        assert key in head
    assert "\nmethod: ablation, " in groups


def test_long_lists_are_broken_and_short_lines_stay() -> None:
    names = ", ".join([f"name_{index}" for index in range(20)])
    lines = fitted_help(f"  a line\n\nmethod: {names}\n").splitlines()
    assert lines[:2] == ["  a line", ""]
    assert " ".join([line.strip() for line in lines[2:]]) == f"method: {names}"
    assert max(map(len, lines)) <= WIDTH


def test_bash_completes_choices_behind_python_m() -> None:
    assert completed("python -m orchestrator method=nm_") == ["nm_1_4", "nm_2_4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python -m orchestrator +experiment=digits_small study.n_", ["study.n_trials="]),
        ("python -m orchestrator +exp", ["+experiment="]),
        ("python -m other sam", []),
        ("ls -l sam", []),
    ],
)
def test_bash_completes_keys_and_leaves_other_programs_alone(
    line: str, expected: list[str]
) -> None:
    assert completed(line) == expected
